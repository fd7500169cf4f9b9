"""What every scenario works with: servers, clients and publishers in processes of their own, and what they count."""

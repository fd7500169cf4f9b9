"""Parts of other frameworks that run on a `Backplane`: each module needs an extra, and no other part imports one."""

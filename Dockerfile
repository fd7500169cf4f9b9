# The demo application, for docker-compose.yml: one worker per container, so that only the broker joins them.
FROM python:3.13-slim
WORKDIR /app
COPY pyproject.toml README.md LICENSE ./
COPY backplane backplane
COPY adapters adapters
RUN pip install --no-cache-dir ".[all]" && useradd --create-home demo
USER demo
EXPOSE 8000
CMD ["uvicorn", "backplane.demo.app:app", "--host", "0.0.0.0", "--port", "8000"]

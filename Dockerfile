# The demo application, for docker-compose.yml: one worker per container, so that only the broker joins them.
FROM python:3.13-slim
WORKDIR /app
COPY requirements/image.txt requirements/
RUN pip install --no-cache-dir --require-hashes --requirement requirements/image.txt
COPY pyproject.toml README.md LICENSE ./
COPY backplane backplane
COPY adapters adapters
# A numeric user, so that Kubernetes can check `runAsNonRoot`; the files stay root's, so that it cannot change them.
RUN pip install --no-cache-dir --no-deps --no-build-isolation . \
    && useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin demo
USER 10001
ENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
EXPOSE 8000
CMD ["uvicorn", "backplane.demo.app:app", "--host", "0.0.0.0", "--port", "8000"]

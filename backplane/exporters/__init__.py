"""How metrics leave the process: Prometheus and OpenTelemetry, each with an extra that is imported when it is used."""

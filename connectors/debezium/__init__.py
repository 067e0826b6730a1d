"""Debezium under Kafka Connect: its configuration, its REST interface, its incremental snapshot."""

"""How to reach a neighbour: Debezium, the schema registry, Kafka, Postgres, the model."""

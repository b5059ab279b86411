"""The defect index in Qdrant: embedded (qdrant-edge), or on a server (qdrant-client)."""

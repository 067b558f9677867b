// MigrationStream

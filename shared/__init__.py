"""What the producer and the workers both speak: settings, storage, pictures, recipes, messages, job records."""

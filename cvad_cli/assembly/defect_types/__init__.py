"""The type of every defect: descriptors, the defect index, the classifier and its trials."""

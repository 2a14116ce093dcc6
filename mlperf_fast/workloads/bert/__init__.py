"""BERT-large's pre-training: text, examples, batches."""

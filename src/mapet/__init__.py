"""Pre-train vision transformers on unlabelled pictures by predicting visual tokens."""

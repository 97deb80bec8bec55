"""The public estimators, and how they read, train on and predict the user's data."""

"""Adversarial networks for robust classifiers."""

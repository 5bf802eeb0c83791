"""Locators: from the features of an input to the task it belongs to."""

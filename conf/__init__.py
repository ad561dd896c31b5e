"""Typed configuration. Imports neither torch nor any other room of the house."""

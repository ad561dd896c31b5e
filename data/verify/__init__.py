"""`ldm verify`: reads a dataset against its manifest and names what is broken."""

from data.verify.command import verify

__all__ = ["verify"]

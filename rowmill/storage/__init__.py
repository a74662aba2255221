"""Places outside: object stores (S3 and what speaks like it, Google Cloud Storage, Azure Blob Storage) and files.

A thin layer over `pyarrow.fs`: explicit credentials, an address policy, objects written whole or not at all, and errors
that say what to do.
"""

from rowmill.storage.addresses import AddressPolicy, AddressRefused
from rowmill.storage.clients import CREDENTIALS
from rowmill.storage.place import is_object_uri
from rowmill.storage.store import ObjectInfo, ObjectStore, OutputFile, open_store

__all__ = [
    "CREDENTIALS",
    "AddressPolicy",
    "AddressRefused",
    "ObjectInfo",
    "ObjectStore",
    "OutputFile",
    "is_object_uri",
    "open_store",
]

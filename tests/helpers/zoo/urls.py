"""URLs that are given as settings and may not be opened."""

URLS = {
    "pipe:": "pipe:touch canary",
    "pipe://": "pipe://touch canary",
    "a chain": "simplecache::file:///etc",
    "zip:// in a chain": "zip://a.tar::file:///etc/a.zip",
    "reference://": "reference://etc",
    "ssh://": "ssh://127.0.0.1/etc",
    "github://": "github://owner:name@main/etc",
    "data:": "data:text/plain,a",
    "credentials": "s3://key:secret@bucket/a",
    "userinfo": "https://user:secret@127.0.0.1/a",
    "a signature": "https://127.0.0.1/a?X-Amz-Signature=secret",
    "a newline": "a\nb",
    "an escape": "memory2://\x1b[2J",
}
# What takes a URL, before its value.
SETTINGS = {
    "folder": ("shard", "out=out", "source=folder", "source.path="),
    "webdataset": ("shard", "out=out", "source=webdataset", "source.path="),
    "data": ("verify", "data.url="),
}

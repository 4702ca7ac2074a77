"""A server that only lists: its pages of a thousand keys were rendered before anybody asked, so that who lists it is what takes time.

`python -m bench.rendered KEYS` prints its port.
"""

from __future__ import annotations

import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

PAGE = 1000


def page(number: int, keys: int) -> bytes:
    """Render one page of `ListObjectsV2`; its continuation token is the next page's number."""
    first, end = number * PAGE, min((number + 1) * PAGE, keys)
    more = (
        f"<IsTruncated>true</IsTruncated><NextContinuationToken>{number + 1}</NextContinuationToken>"
        if end < keys
        else "<IsTruncated>false</IsTruncated>"
    )
    rows = "".join(
        f"<Contents><Key>photos/{index:010d}.jpg</Key><LastModified>2026-11-28T12:00:00.000Z</LastModified>"
        f"<ETag>&#34;{index:032x}&#34;</ETag><Size>400000</Size><StorageClass>STANDARD</StorageClass></Contents>"
        for index in range(first, end)
    )
    name = 'xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'
    head = f"<Name>bench</Name><Prefix>photos/</Prefix><KeyCount>{end - first}</KeyCount><MaxKeys>{PAGE}</MaxKeys>"
    return (
        f'<?xml version="1.0" encoding="UTF-8"?><ListBucketResult {name}>{head}{more}{rows}</ListBucketResult>'.encode()
    )


class Handler(BaseHTTPRequestHandler):
    """Answers every listing with the page that it asks for."""

    protocol_version = "HTTP/1.1"
    pages: list[bytes]

    def do_GET(self) -> None:
        """Answer."""
        asked = parse_qs(urlsplit(self.path).query)
        body = self.pages[int(asked.get("continuation-token", ["0"])[0])]
        self.send_response_only(200)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def main(keys: int) -> None:
    """Serve until ended."""
    Handler.pages = [page(number, keys) for number in range(-(-keys // PAGE))]
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print(server.server_port, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main(int(sys.argv[1]))

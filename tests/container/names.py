"""A name server and an API with one instance, on loopback in a network namespace of their own.

Run it by `unshare --net`. It says `ready` when both answer, and at its end, when standard input closes, the names that it was
asked for.
"""

import fcntl
import http.server
import json
import socket
import struct
import sys
import threading

SIOCSIFFLAGS, IFF_UP = 0x8914, 1
API_PORT = 8080
ANSWER = {"response": {"requestId": "r", "totalCount": 1, "dataSet": [{"instanceId": "1", "instanceStatus": "RUNNING"}]}}


def raise_loopback():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", IFF_UP))


def serve_names(server, asked):
    """Answers 127.0.0.1 to each question for an IPv4 address, and that there is none to any other."""
    while True:
        query, client = server.recvfrom(512)
        labels, at = [], 12
        while query[at]:
            labels.append(query[at + 1 : at + 1 + query[at]].decode())
            at += 1 + query[at]
        question = query[12 : at + 5]
        asked.add(".".join(labels))
        is_ipv4 = question[-4:-2] == b"\0\1"
        record = b"\xc0\x0c\0\1\0\1\0\0\0\x3c\0\4\x7f\0\0\1" if is_ipv4 else b""
        counts = struct.pack(">HHHHH", 0x8180, 1, int(is_ipv4), 0, 0)
        server.sendto(query[:2] + counts + question + record, client)


class Api(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        body = json.dumps(ANSWER).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def main():
    raise_loopback()
    asked = set()
    names = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    names.bind(("127.0.0.1", 53))
    api = http.server.ThreadingHTTPServer(("127.0.0.1", API_PORT), Api)
    threading.Thread(target=serve_names, args=(names, asked), daemon=True).start()
    threading.Thread(target=api.serve_forever, daemon=True).start()
    print("ready", flush=True)
    sys.stdin.read()
    print(json.dumps(sorted(asked)), flush=True)


main()

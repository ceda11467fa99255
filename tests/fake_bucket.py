"""Google Cloud Storage in memory, behind HTTP: as much of its JSON interface as tensorstore and gcsfs speak.

python tests/fake_bucket.py PORT
"""

import http.server
import itertools
import json
import re
import sys
import threading
import urllib.parse


class Bucket(http.server.ThreadingHTTPServer):
    """All objects of all buckets, each with the generation that a write under a condition asks for."""

    daemon_threads = True

    def __init__(self, port):
        super().__init__(("127.0.0.1", port), Handler)
        self.objects, self.generations, self.lock = {}, itertools.count(1), threading.Lock()


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        path, query = self.asked()
        if found := re.fullmatch(r"(?:/download)?/storage/v1/b/([^/]+)/o/(.+)", path):
            return self.read(found[1], urllib.parse.unquote(found[2]), query)
        if found := re.fullmatch(r"/storage/v1/b/([^/]+)/o/?", path):
            return self.list(found[1], query)
        return self.answer(200, {"kind": "storage#bucket", "name": path.rsplit("/", 1)[-1], "locationType": "region"})

    def do_POST(self):
        path, query = self.asked()
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if path.startswith("/batch/"):
            return self.batch(body)
        bucket, name = path.split("/b/", 1)[1].split("/")[0], query.get("name", "")
        if query.get("uploadType") == "resumable":
            query = urllib.parse.urlencode({"uploadType": "media", "name": name})
            return self.answer(200, {}, {"Location": f"http://{self.headers['Host']}{path}?{query}"})
        if query.get("uploadType") == "multipart":
            boundary = re.search(r'boundary="?([^";]+)', self.headers["Content-Type"])[1].encode()
            told, content = (part.split(b"\n\n", 1)[1] if b"\r\n\r\n" not in part else part.split(b"\r\n\r\n", 1)[1]
                             for part in body.split(b"--" + boundary)[1:3])  # fmt: skip
            name, body = json.loads(told)["name"], re.sub(rb"\r?\n$", b"", content)
        with self.server.lock:
            there = self.server.objects.get((bucket, name), (0, b""))[0]
            if str(there) != query.get("ifGenerationMatch", str(there)):
                return self.answer(412, {})
            generation = next(self.server.generations)
            self.server.objects[bucket, name] = generation, body
        return self.answer(200, self.described(bucket, name, generation, body))

    do_PUT = do_POST  # The content of a resumable upload; all in one piece.

    def do_DELETE(self):
        bucket, name = re.fullmatch(r"/storage/v1/b/([^/]+)/o/(.+)", self.asked()[0]).groups()
        with self.server.lock:
            gone = self.server.objects.pop((bucket, urllib.parse.unquote(name)), None)
        return self.answer(204 if gone else 404, None)

    def asked(self):
        url = urllib.parse.urlsplit(self.path)
        return url.path, dict(urllib.parse.parse_qsl(url.query, keep_blank_values=True))

    def described(self, bucket, name, generation, content):
        return {"kind": "storage#object", "bucket": bucket, "name": name, "size": str(len(content)),
                "generation": str(generation), "updated": "2026-01-01T00:00:00.000Z",
                "timeCreated": "2026-01-01T00:00:00.000Z"}  # fmt: skip

    def read(self, bucket, name, query):
        if (bucket, name) not in self.server.objects:
            return self.answer(404, {"error": {"code": 404, "message": "No such object"}})
        generation, content = self.server.objects[bucket, name]
        if query.get("alt") != "media":
            return self.answer(200, self.described(bucket, name, generation, content))
        if query.get("ifGenerationNotMatch") == str(generation):
            return self.answer(304, None)
        if query.get("ifGenerationMatch", str(generation)) != str(generation):
            return self.answer(412, {})
        headers, total = {"x-goog-generation": generation}, len(content)
        if wanted := re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", "")):
            first = int(wanted[1]) if wanted[1] else max(total - int(wanted[2]), 0)
            last = min(int(wanted[2]), total - 1) if wanted[1] and wanted[2] else total - 1
            headers["Content-Range"] = f"bytes {first}-{last}/{total}"
            return self.answer(206, content[first : last + 1], headers)
        return self.answer(200, content, headers)

    def list(self, bucket, query):
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        items, prefixes = [], set()
        for (where, name), (generation, content) in sorted(self.server.objects.items()):
            if where != bucket or not name.startswith(prefix):
                continue
            rest = name[len(prefix) :]
            if delimiter and delimiter in rest:
                prefixes.add(prefix + rest.split(delimiter)[0] + delimiter)
            else:
                items.append(self.described(bucket, name, generation, content))
        return self.answer(200, {"kind": "storage#objects", "items": items, "prefixes": sorted(prefixes)})

    def batch(self, body):
        answers = []
        for bucket, name in re.findall(rb"DELETE [^ ]*/b/([^/]+)/o/([^ ?]+)", body):
            with self.server.lock:
                self.server.objects.pop((bucket.decode(), urllib.parse.unquote(name.decode())), None)
            answers.append("--batch\r\nContent-Type: application/http\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n\r\n")
        headers = {"Content-Type": "multipart/mixed; boundary=batch"}
        return self.answer(200, ("".join(answers) + "--batch--\r\n").encode(), headers)

    def answer(self, code, content, headers=None):
        body = b"" if content is None else content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(code)
        kind = "application/octet-stream" if isinstance(content, bytes) else "application/json"
        for name, value in ({"Content-Type": kind} | (headers or {})).items():
            self.send_header(name, str(value))
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


if __name__ == "__main__":
    Bucket(int(sys.argv[1])).serve_forever()

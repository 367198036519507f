"""A server of Weights & Biases on the loopback: the GraphQL requests that listing runs takes."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

KEY = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Project:
    """What the server holds, and what it was asked."""

    runs: dict[str, dict[str, Any]] = field(default_factory=dict)
    asked: list[tuple[str, int]] = field(default_factory=list)
    """Of each page: "list" or "fetch", and how many runs were given."""
    failures: list[str] = field(default_factory=list)
    """Of the next pages that are fetched: "500", "break", or "" for none."""
    url: str = ""

    def add(self, run_id: str, *, beat: int = 0, state: str = "finished", **values: Any) -> None:
        config = {"lr": {"value": 1e-3}, "_wandb": {"value": {}}}
        config |= {key: {"value": value} for key, value in values.pop("config", {}).items()}
        self.runs[run_id] = {
            **{"id": f"x{run_id}", "name": run_id, "displayName": f"run {run_id}", "state": state},
            **{"tags": values.pop("tags", ["t"]), "group": None, "jobType": None, "commit": None},
            **{"createdAt": "2026-01-01T00:00:00Z", "heartbeatAt": f"2026-01-02T00:00:{beat:02}Z"},
            **{"config": json.dumps(config), "summaryMetrics": json.dumps(values)},
            **{"systemMetrics": "{}", "historyKeys": None, "historyLineCount": 3},
            **{"sweepName": None, "readOnly": False, "description": "", "notes": ""},
            **{"projectId": "1", "user": {"name": "me", "username": "me"}},
        }

    def answer(self, request: Mapping[str, Any]) -> Any:
        """Return the data of an answer; a text: what fails."""
        if "runs(" not in request["query"]:
            viewer = {"id": "v", "entity": "me", "username": "me", "flags": "{}", "email": ""}
            return {"viewer": {**viewer, "teams": {"edges": []}}}
        variables = request["variables"]
        if variables["project"] != "laws":
            return {"project": None}
        kind = "fetch" if "summaryMetrics" in request["query"] else "list"
        failure = self.failures.pop(0) if kind == "fetch" and self.failures else ""
        if failure:
            return failure
        names = json.loads(variables["filters"]).get("name", {}).get("$in")
        runs = [run for run in self.runs.values() if names is None or run["name"] in names]
        start = int(variables["cursor"] or 0)
        page = runs[start : start + variables["perPage"]]
        self.asked.append((kind, len(page)))
        light = {"config", "summaryMetrics", "systemMetrics", "historyKeys"}
        nodes = (
            page
            if kind == "fetch"
            else [{key: value for key, value in run.items() if key not in light} for run in page]
        )
        end = start + len(page)
        edges = [{"node": node, "cursor": str(start + i + 1)} for i, node in enumerate(nodes)]
        more = {"endCursor": str(end), "hasNextPage": end < len(runs)}
        return {
            "project": {
                **{"internalId": "1", "runCount": len(runs), "readOnly": False},
                "runs": {"edges": edges, "pageInfo": more},
            }
        }


@contextmanager
def wandb_server() -> Iterator[Project]:
    project = Project()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            answer = project.answer(request)
            if answer == "break":
                self.send_response(200)
                self.send_header("Content-Length", "1000")
                self.end_headers()
                self.wfile.write(b'{"data": {"proj')
                return
            content = json.dumps({"data": answer}).encode()
            self.send_response(500 if answer == "500" else 200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    project.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield project
    finally:
        server.shutdown()
        server.server_close()

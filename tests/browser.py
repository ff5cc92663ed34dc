"""A headless Chromium through the pipe of its debugging protocol: what a page does when it is looked at."""

import json
import os
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
# Of a page: what sticks out to the right, and what a screen reader cannot name.
LOOK = """(() => {
  const root = document.documentElement;
  const wide = root.scrollWidth > root.clientWidth;
  const beyond = e => e.getBoundingClientRect().right > root.clientWidth + 1 && !e.closest(".scroll, pre, svg");
  const out = wide ? [...document.body.querySelectorAll("*")].filter(beyond).slice(0, 3) : [];
  const named = "img:not([alt]), svg:not([aria-label]), input:not([aria-label]), table:not([aria-label])";
  const nameless = [...document.querySelectorAll(named)]
    .filter(e => !e.parentElement.closest("svg") && !(e.id && document.querySelector(`label[for=${e.id}]`)))
    .map(e => e.outerHTML.slice(0, 120));
  return {wide, out: out.map(e => e.outerHTML.slice(0, 120)), nameless,
          title: document.title, lang: root.lang, headings: document.querySelectorAll("h1").length,
          text: document.body.innerText.length};
})()"""


@dataclass(slots=True)
class Looked:
    """What was found: console errors, requests that leave the page, and what LOOK returns."""

    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    found: dict[str, Any] = field(default_factory=dict)

    @property
    def faults(self) -> list[str]:
        """Everything that is wrong with it, in words."""
        wrong = [f"console: {error}" for error in self.errors] + [f"requests {url}" for url in self.requests]
        wrong += [f"sticks out: {self.found['out']}"] if self.found["wide"] else []
        wrong += [f"no name for a screen reader: {thing}" for thing in self.found["nameless"]]
        wrong += (
            [] if self.found["title"] and self.found["lang"] and self.found["headings"] == 1 else ["title, lang, h1"]
        )
        return wrong


class Browser:
    """One process for many pages. A `with` block ends it."""

    def __init__(self, folder: Path) -> None:
        assert CHROMIUM is not None
        asks, self._out = os.pipe()
        self._in, answers = os.pipe()
        flags = "--headless=new --no-sandbox --disable-gpu --disable-background-networking --disable-component-update"
        command = [CHROMIUM, *flags.split(), "--remote-debugging-pipe", f"--user-data-dir={folder}", "about:blank"]

        def wire() -> None:  # Chromium reads from 3 and writes to 4
            os.dup2(asks, 13)
            os.dup2(answers, 14)
            os.dup2(13, 3)
            os.dup2(14, 4)

        self._process = subprocess.Popen(
            command, preexec_fn=wire, close_fds=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(asks)
        os.close(answers)
        self._rest, self._number, self._events = b"", 0, list[dict[str, Any]]()
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.ask(f"{domain}.enable")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._out)
        os.close(self._in)

    def ask(self, method: str, **settings: Any) -> dict[str, Any]:
        """The answer to a command of the protocol; events that come before it are kept."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": settings}
        if session := getattr(self, "_session", ""):
            message["sessionId"] = session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]
            self._events.append(answer)

    def evaluate(self, script: str) -> Any:
        """The value of a script's last expression on the page."""
        return self.ask("Runtime.evaluate", expression=script, returnByValue=True)["result"].get("value")

    def look(self, page: Path, width: int = 1300) -> Looked:
        """Load a file in a window of so many pixels."""
        self._events.clear()
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        self.ask("Page.navigate", url=page.absolute().as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self._events):
            self._events.append(self._read())
        looked = Looked(found=self.evaluate(LOOK))
        for event in self._events:
            told = event.get("params", {})
            if event.get("method") == "Network.requestWillBeSent":
                url = told["request"]["url"]
                if url != page.absolute().as_uri() and not url.startswith("data:"):
                    looked.requests.append(url[:200])
            elif event.get("method") == "Runtime.exceptionThrown":
                details = told["exceptionDetails"]
                looked.errors.append(details.get("exception", details).get("description", str(details))[:300])
            elif event.get("method") == "Log.entryAdded" and told["entry"]["level"] == "error":
                looked.errors.append(told["entry"]["text"])
            elif event.get("method") == "Runtime.consoleAPICalled" and told["type"] in ("error", "assert"):
                looked.errors.append(str(told["args"])[:300])
        return looked

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            some = os.read(self._in, 1 << 20)
            assert some, "Chromium has ended"
            self._rest += some
        line, _, self._rest = self._rest.partition(b"\0")
        return json.loads(line)

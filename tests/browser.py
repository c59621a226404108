"""A page in headless Chromium: what it complains of, how wide it is, how it looks.

python -m tests.browser PAGE.html FOLDER  # writes a picture of each screen in light and dark
"""

import asyncio
import base64
import itertools
import re
import shutil
import sys
import tempfile
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import aiohttp

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
SCREENS = {"desktop": 1280, "phone": 390}  # CSS pixels across
HEIGHT = 844
# The right edge of what no scrolling box holds, and texts of pictures that leave their picture.
MEASURE = """({
  width: document.documentElement.scrollWidth,
  clipped: [...document.querySelectorAll("svg")].flatMap(svg => {
    const box = svg.getBoundingClientRect();
    return box.width ? [...svg.querySelectorAll("text")].filter(text => {
      const own = text.getBoundingClientRect();
      return own.left < box.left - 1 || own.right > box.right + 1
        || own.top < box.top - 1 || own.bottom > box.bottom + 1;
    }).map(text => text.textContent) : [];
  }),
  title: document.title,
})"""


class Look(NamedTuple):
    messages: list[str]  # of the console, and of what failed to load
    width: int
    clipped: list[str]
    title: str
    picture: bytes


def look(url: str, width: int, scheme: str = "light", script: str = "") -> Look:
    """The page on a screen of this width, after `script`."""
    return asyncio.run(_look(url, width, scheme, script))


async def _look(url, width, scheme, script):
    async with _tab() as (call, events):
        for domain in ("Page", "Runtime", "Log", "Network"):
            await call(f"{domain}.enable")
        size = {"width": width, "height": HEIGHT, "deviceScaleFactor": 1, "mobile": width < 600}
        await call("Emulation.setDeviceMetricsOverride", **size)
        feature = {"name": "prefers-color-scheme", "value": scheme}
        await call("Emulation.setEmulatedMedia", features=[feature])
        await call("Page.navigate", url=url)
        while not any(event["method"] == "Page.loadEventFired" for event in events):
            await call("Runtime.evaluate", expression="0")
        if script:
            await call("Runtime.evaluate", expression=script)
        measured = await call("Runtime.evaluate", expression=MEASURE, returnByValue=True)
        found = measured["result"]["value"]
        shot = await call("Page.captureScreenshot", captureBeyondViewport=True)
    kinds = ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown")
    messages = [str(event["params"]) for event in events if event["method"] in kinds]
    messages += [
        event["params"]["request"]["url"]
        for event in events
        if event["method"] == "Network.requestWillBeSent"
        and event["params"]["request"]["url"] != url
    ]
    return Look(messages, **found, picture=base64.b64decode(shot["data"]))


@asynccontextmanager
async def _tab():
    """A new tab: `call(method, ...)` of the DevTools protocol, and the list of its events."""
    with tempfile.TemporaryDirectory() as profile:
        flags = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars")
        where = (f"--user-data-dir={profile}", "--remote-debugging-port=0", "about:blank")
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(CHROMIUM, *flags, *where, stderr=pipe)
        try:
            address = None
            while address is None:
                line = (await process.stderr.readline()).decode()
                assert line, "Chromium has ended"
                address = re.search(r"ws://([^/]+)", line)
            async with aiohttp.ClientSession() as session:
                async with session.get(f"http://{address[1]}/json/list") as answer:
                    target = next(one for one in await answer.json() if one["type"] == "page")
                url = target["webSocketDebuggerUrl"]
                async with session.ws_connect(url, max_msg_size=0) as socket:
                    events, numbers = [], itertools.count(1)

                    async def call(method, **params):
                        number = next(numbers)
                        await socket.send_json({"id": number, "method": method, "params": params})
                        while (message := await socket.receive_json()).get("id") != number:
                            events.append(message)
                        assert "error" not in message, message
                        return message["result"]

                    yield call, events
        finally:
            process.kill()
            await process.wait()


def main(page: str, folder: str) -> None:
    for (name, width), scheme in itertools.product(SCREENS.items(), ("light", "dark")):
        found = look(Path(page).absolute().as_uri(), width, scheme)
        (Path(folder) / f"{Path(page).stem}_{name}_{scheme}.png").write_bytes(found.picture)
        print(name, scheme, f"{found.width} pixels wide", found.messages, found.clipped)


if __name__ == "__main__":
    main(*sys.argv[1:])

"""The app as a server of the Model Context Protocol: an assistant and a page share one project."""

import ast
import asyncio
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from helpers.app import App
from helpers.commands import command

pytest.importorskip("mcp")


@pytest.mark.slow
def test_an_assistant_gathers_trains_and_asks(tmp_path):
    from mcp import ClientSession
    from mcp.client.streamable_http import streamable_http_client

    app = App(tmp_path / "app", "--mcp")

    async def assist() -> dict:
        async with (
            streamable_http_client(f"{app.url}/gradio_api/mcp/") as (reader, writer, _),
            ClientSession(reader, writer) as session,
        ):
            await session.initialize()
            tools = {tool.name: tool for tool in (await session.list_tools()).tools}

            async def call(name: str, /, **arguments):
                full = next(tool for tool in tools if tool == name or tool.endswith(f"_{name}"))
                answer = await session.call_tool(full, arguments)
                assert not answer.isError, answer.content
                return answer.content

            for name, tool in tools.items():
                assert tool.description, f"{name} has no description"
            await call("add_class", name="bird")
            content = await call("state")
            return {"tools": len(tools), "state": ast.literal_eval(content[0].text)}

    try:
        with ThreadPoolExecutor(1) as pool:  # the browser's tests have a loop in this thread
            told = pool.submit(asyncio.run, assist()).result()
        assert told["tools"] == 48
        assert [entry["name"] for entry in told["state"]["classes"]] == ["bird"]
        for host, status in (("evil.example", 403), ("localhost", 200)):
            answer = httpx.post(
                f"{app.url}/gradio_api/run/state", json={"data": []}, headers={"host": host}
            )
            assert answer.status_code == status, host
        page = app.client()  # another browser sees the same project
        assert [c["name"] for c in page.predict(api_name="/state")["classes"]] == ["bird"]
    finally:
        app.close()


def test_a_shared_project_needs_a_password_where_others_reach_it():
    done = command("app", "--mcp", "--host", "0.0.0.0")
    assert done.returncode == 2
    assert "--mcp: whoever reaches the app would share one project; add --auth" in done.stderr

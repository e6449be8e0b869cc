"""``llava-native devices``: what this build can compute on, and what it was built from."""

from __future__ import annotations

import json

import click

__all__ = ["devices"]


@click.command()
@click.option("--json", "as_json", is_flag=True, help="As one JSON object.")
def devices(as_json: bool) -> None:
    """Show compute devices, CPU features, build options, llama.cpp's commit and our patches."""
    from llava_native import _native

    found, build = _native.devices(), _native.build_info()
    if as_json:
        print(json.dumps({"devices": found, "build": build}, indent=2))
        return
    for device in found:
        memory = f"{device['memory_free'] / 2**30:.1f} of {device['memory_total'] / 2**30:.1f} GiB free"
        print(f"{device['name']}: {device['description']} ({device['type']}, {device['backend']}), {memory}")
        if device["features"]:
            print("  " + " ".join(f"{k}={v}" if v != "1" else k for k, v in device["features"].items()))
    source = build["llama_cpp_source"] or "the pinned source"
    print(f"llama.cpp: {build['llama_cpp_commit'] or 'unknown commit'}, {source}")
    print(f"patches: {', '.join(build['patches']) or 'none'}")
    print(f"built with: {build['compiler']}, {build['build_type']}")
    print("options: " + " ".join(f"{k}={v}" for k, v in build["options"].items()))

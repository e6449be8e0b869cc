"""``python -m llava_native``: the command `llava-native`, of this very interpreter."""

from __future__ import annotations

import sys

from llava_native.cli import main

sys.exit(main())

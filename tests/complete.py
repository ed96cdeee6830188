"""Whether the longest tests are wanted too, which `make test-complete` asks for."""

import os
from typing import Final

IS_COMPLETE: Final = os.environ.get("TRAINER_TESTS_COMPLETE") == "1"

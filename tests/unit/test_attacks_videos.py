"""What calls itself a video and would have other files read, or the memory filled."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from vdmini_core.data.video import read_info, video_stream, write_mp4
from vdmini_core.errors import DataError


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A video of somebody else's, beside the folder that is given."""
    frames = np.random.default_rng(0).integers(0, 255, (8, 32, 32, 3), dtype=np.uint8)
    path = tmp_path / "secret.mp4"
    write_mp4(path, frames, 8)
    return path


PLAYLISTS = {
    "concat": "ffconcat version 1.0\nfile {name}\n",
    "hls": "#EXTM3U\n#EXT-X-VERSION:7\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{name}\n#EXT-X-ENDLIST\n",
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nm=video 9 RTP/AVP 96\n",
}


@pytest.mark.parametrize("kind", PLAYLISTS)
def test_a_list_of_other_files_is_no_video(secret: Path, kind: str) -> None:
    assert read_info(secret).codec == "h264"
    path = secret.with_name("clip.mp4")
    path.write_text(PLAYLISTS[kind].format(name=secret.name))
    with pytest.raises(DataError, match=r"not a video file|not a readable video"):
        read_info(path)


def test_a_header_that_claims_more_pixels_than_memory_has_is_refused() -> None:
    """Before a frame is asked for; whole files of such headers are in the fuzz."""
    claimed = SimpleNamespace(width=65535, height=65535)
    stream = SimpleNamespace(codec_context=claimed, thread_type="AUTO")
    container = SimpleNamespace(streams=SimpleNamespace(best=lambda _: stream))
    with pytest.raises(DataError, match="its header claims 65535x65535 pixels"):
        video_stream(container)
    claimed.height = 4096
    assert video_stream(container) is stream

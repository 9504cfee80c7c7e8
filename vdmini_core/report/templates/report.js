// One clock for all clips: every video follows the first, so that what differs on screen is the model.
(() => {
  "use strict";
  const videos = [...document.querySelectorAll("video")];
  if (!videos.length) return;
  const leader = videos[0];
  const play = document.getElementById("play");
  const scrub = document.getElementById("scrub");
  const speed = document.getElementById("speed");
  const frames = Math.max(1, Number(leader.dataset.frames) || 1);
  let playing = !matchMedia("(prefers-reduced-motion: reduce)").matches;
  let held = false; // while the slider is dragged the clock stands still

  const length = (video) => (Number.isFinite(video.duration) && video.duration > 0 ? video.duration : 1);
  const place = (share) => videos.forEach((video) => { video.currentTime = Math.min(share * length(video), length(video) - 0.001); });

  function show() {
    play.textContent = playing ? "Pause" : "Play";
    play.setAttribute("aria-pressed", String(playing));
  }
  function apply() {
    videos.forEach((video) => {
      video.playbackRate = Number(speed.value);
      if (playing && !held) video.play().catch(() => {}); // a browser may refuse to start; the button remains
      else video.pause();
    });
    show();
  }
  function step(direction) {
    playing = false;
    apply();
    const at = Math.floor((leader.currentTime / length(leader)) * frames) + direction;
    place((((at % frames) + frames) % frames + 0.5) / frames);
  }
  function tick() {
    const share = leader.currentTime / length(leader);
    if (!held) scrub.value = String(Math.round(share * 1000));
    if (playing && !held) {
      videos.forEach((video) => {
        const drift = Math.abs(video.currentTime / length(video) - share);
        // Near the seam one clip may have looped already: that is no drift.
        if (drift > 0.09 && drift < 0.91 && !video.seeking) video.currentTime = share * length(video);
      });
    }
    requestAnimationFrame(tick);
  }

  play.addEventListener("click", () => { playing = !playing; apply(); });
  speed.addEventListener("change", apply);
  scrub.addEventListener("input", () => { held = true; apply(); place(Number(scrub.value) / 1000); });
  scrub.addEventListener("change", () => { held = false; apply(); });
  document.getElementById("back").addEventListener("click", () => step(-1));
  document.getElementById("forward").addEventListener("click", () => step(1));
  if (!playing) videos.forEach((video) => video.removeAttribute("autoplay"));
  apply();
  requestAnimationFrame(tick);
})();

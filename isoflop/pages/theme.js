"use strict";
(() => {
  // Light and dark: the system's choice until the reader makes one.
  const root = document.documentElement;
  const theme = document.getElementById("theme");
  const system = window.matchMedia("(prefers-color-scheme: dark)");
  const setTheme = (dark) => {
    root.dataset.theme = dark ? "dark" : "light";
    theme.textContent = dark ? "Light" : "Dark";
    theme.setAttribute("aria-pressed", String(dark));
  };
  setTheme(system.matches);
  let chosen = false;
  system.addEventListener("change", () => { if (!chosen) setTheme(system.matches); });
  theme.addEventListener("click", () => {
    chosen = true;
    setTheme(root.dataset.theme !== "dark");
  });
})();

// Draws Mermaid diagrams where the site has Mermaid; without it they stay as text.
const diagrams = document.querySelectorAll(".highlight-mermaid pre");
if (diagrams.length) {
  import(document.currentScript.src.replace(/site\.js.*/, "vendor/mermaid/mermaid.esm.min.mjs")).then(({ default: mermaid }) => {
    diagrams.forEach((pre) => {
      const drawn = document.createElement("pre");
      drawn.className = "mermaid";
      drawn.textContent = pre.textContent;
      pre.closest(".highlight-mermaid").replaceWith(drawn);
    });
    mermaid.initialize({ startOnLoad: false, theme: document.documentElement.dataset.theme === "dark" ? "dark" : "default" });
    return mermaid.run();
  }).catch(() => {}); // read from a disk, where browsers load no modules
}

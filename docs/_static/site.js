// Draws Mermaid diagrams where the site has Mermaid; without it they stay as text.
const diagrams = document.querySelectorAll(".highlight-mermaid pre");
if (diagrams.length) {
  const script = document.createElement("script");
  script.src = document.currentScript.src.replace(/site\.js.*/, "vendor/mermaid.min.js");
  script.onload = () => {
    diagrams.forEach((pre) => {
      const drawn = document.createElement("pre");
      drawn.className = "mermaid";
      drawn.textContent = pre.textContent;
      pre.closest(".highlight-mermaid").replaceWith(drawn);
    });
    mermaid.initialize({ startOnLoad: false, theme: document.documentElement.dataset.theme === "dark" ? "dark" : "default" });
    mermaid.run();
  };
  document.head.append(script);
}

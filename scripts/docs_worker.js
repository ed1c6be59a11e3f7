// Search on a site that is read from a disk. Browsers run no worker from a file, so an invisible frame stands in for
// one: its onmessage gets what the page posts, and what it posts goes to the page's onmessage. As with a worker, a
// message is a copy, which its reader may change, and arrives after what posted it has run.
if (location.protocol === "file:") {
  window.Worker = class {
    static send(data, reader) {
      const copy = structuredClone(data)
      setTimeout(() => reader.onmessage?.({ data: copy }))
    }

    constructor(address) {
      this.waiting = []
      this.frame = document.createElement("iframe")
      this.frame.hidden = true
      this.frame.addEventListener("load", () => {
        const inside = this.frame.contentWindow
        inside.postMessage = (data) => window.Worker.send(data, this)
        const script = inside.document.createElement("script")
        script.src = new URL(address, location.href).href
        script.addEventListener("load", () => {
          this.inside = inside
          this.waiting.splice(0).forEach((data) => this.postMessage(data))
        })
        script.addEventListener("error", (event) => this.onerror?.(event))
        inside.document.body.append(script)
      }, { once: true })
      document.body.append(this.frame)
    }

    postMessage(data) {
      if (this.inside) window.Worker.send(data, this.inside)
      else this.waiting.push(data)
    }

    terminate() {
      this.frame.remove()
    }
  }
}

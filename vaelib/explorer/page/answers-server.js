// The model runs in Python, behind this page's own server.

export async function open() {
  return async (call, values, label) => {
    const headers = { "content-type": "application/octet-stream" };
    const address = label === undefined ? call : `${call}?label=${label}`;
    const answer = await fetch(address, { method: "POST", headers, body: values }).catch(() => {
      throw new Error("The explorer's server does not answer. Start it again: vaelib explore BUNDLE");
    });
    if (!answer.ok) throw new Error(await answer.text());
    return new Float32Array(await answer.arrayBuffer());
  };
}

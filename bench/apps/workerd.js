// The peer workerd: the same answer in JavaScript, in a V8 isolate inside a server written in C++.
export default {
  async fetch(request) {
    const data = await request.json();
    return Response.json({ sum: data.a + data.b });
  },
};

// Node `ws` with a room for each channel, fed by Redis; several workers by Node's cluster.
const cluster = require("cluster");
const { createClient } = require("redis");
const { WebSocketServer } = require("ws");

const workers = Number(process.env.BENCH_WORKERS || 1);

async function serve() {
  const publisher = createClient({ url: process.env.BENCH_REDIS_URL });
  const subscriber = publisher.duplicate();
  await Promise.all([publisher.connect(), subscriber.connect()]);
  const rooms = new Map();
  await subscriber.pSubscribe("bench-ws:*", (text) => {
    for (const socket of rooms.get(text.slice(8, 12)) || []) socket.send(text);
  });
  const server = new WebSocketServer({ port: Number(process.env.PORT), host: "127.0.0.1", backlog: 4096 });
  server.on("connection", (socket, request) => {
    if (request.url === "/publish") {
      socket.on("message", (data) => publisher.publish(`bench-ws:${data.toString().slice(8, 12)}`, data.toString()));
      return;
    }
    const channel = request.url.slice(request.url.lastIndexOf("/") + 1);
    if (!rooms.has(channel)) rooms.set(channel, new Set());
    rooms.get(channel).add(socket);
    socket.on("close", () => rooms.get(channel).delete(socket));
  });
}

if (workers > 1 && cluster.isPrimary) {
  for (let number = 0; number < workers; number++) cluster.fork();
} else {
  serve();
}

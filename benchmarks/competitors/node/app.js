// Node Socket.IO with its Redis adapter; several workers by Node's cluster.
const cluster = require("cluster");
const { createServer } = require("http");
const { createClient } = require("redis");
const { createAdapter } = require("@socket.io/redis-adapter");
const { Server } = require("socket.io");

const workers = Number(process.env.BENCH_WORKERS || 1);

async function serve() {
  const publisher = createClient({ url: process.env.BENCH_REDIS_URL });
  const subscriber = publisher.duplicate();
  await Promise.all([publisher.connect(), subscriber.connect()]);
  const http = createServer();
  const io = new Server(http, { transports: ["websocket"], adapter: createAdapter(publisher, subscriber) });
  io.on("connection", (socket) => {
    const { channel } = socket.handshake.query;
    if (channel) socket.join(channel);
    socket.on("publish", (text) => io.to(text.slice(8, 12)).emit("message", text));
  });
  http.listen({ port: Number(process.env.PORT), host: "127.0.0.1", backlog: 4096 });
}

if (workers > 1 && cluster.isPrimary) {
  for (let number = 0; number < workers; number++) cluster.fork();
} else {
  serve();
}

import react from "@vitejs/plugin-react";
import { defineConfig } from "vite";

const server = "http://127.0.0.1:8000"; // rooms.py

export default defineConfig({
  plugins: [react()],
  server: { proxy: { "/tokens": server, "/rooms": server, "/connection": { target: server, ws: true } } },
});

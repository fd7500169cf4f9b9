import { useState } from "react";
import { createRoot } from "react-dom/client";
import { useRoom } from "./useRoom.js";

const query = new URLSearchParams(location.search);
const user = query.get("user") ?? "ada";
const room = query.get("room") ?? "kitchen";

function Room() {
  const { state, lines, post } = useRoom(user, room);
  const [text, setText] = useState("");
  const [problem, setProblem] = useState("");

  async function submit(event) {
    event.preventDefault();
    try {
      await post(text);
      setText("");
      setProblem("");
    } catch (error) {
      setProblem(`not sent: ${error.message}`); // the text stays: the SDK sends nothing twice
    }
  }

  return (
    <main>
      <h1>{room}</h1>
      <p role="status">{state}</p>
      <ol role="log">{lines.map((line) => <li key={line.key}>{line.text}</li>)}</ol>
      <form onSubmit={submit}>
        <label>Message <input value={text} onChange={(event) => setText(event.target.value)} /></label>
        <button>Send</button>
        <p role="alert">{problem}</p>
      </form>
    </main>
  );
}

createRoot(document.getElementById("root")).render(<Room />);

// Follow a room with centrifuge-go: lines from stdin are posted, and what was missed is restored.
//
// Run ../rooms.py, then in this folder:
//
//	go run . http://127.0.0.1:8000 ada kitchen
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"log"
	"net/http"
	"net/url"
	"os"
	"strings"

	"github.com/centrifugal/centrifuge-go"
)

type post struct {
	Author string `json:"author"`
	Text   string `json:"text"`
}

type draft struct {
	Room string `json:"room"`
	Text string `json:"text"`
}

func token(server, user string) (string, error) {
	answer, err := http.Post(server+"/tokens?user="+url.QueryEscape(user), "", nil)
	if err != nil {
		return "", err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return "", fmt.Errorf("no token: %s", answer.Status)
	}
	var body struct {
		Token string `json:"token"`
	}
	err = json.NewDecoder(answer.Body).Decode(&body)
	return body.Token, err
}

func main() {
	if len(os.Args) != 4 {
		log.Fatal("usage: go run . SERVER USER ROOM")
	}
	server, user, room := os.Args[1], os.Args[2], os.Args[3]

	client := centrifuge.NewJsonClient(
		strings.Replace(server, "http", "ws", 1)+"/connection/websocket",
		centrifuge.Config{GetToken: func(centrifuge.ConnectionTokenEvent) (string, error) { return token(server, user) }},
	)
	defer client.Close()
	client.OnDisconnected(func(event centrifuge.DisconnectedEvent) { fmt.Println("disconnected:", event.Reason) })

	subscription, err := client.NewSubscription("room:" + room)
	if err != nil {
		log.Fatal(err)
	}
	subscription.OnSubscribed(func(event centrifuge.SubscribedEvent) {
		switch {
		case !event.WasRecovering:
			fmt.Println("subscribed")
		case event.Recovered:
			fmt.Println("restored")
		default:
			fmt.Println("missed: load again")
		}
	})
	subscription.OnPublication(func(event centrifuge.PublicationEvent) {
		var received post
		if err := json.Unmarshal(event.Data, &received); err != nil {
			log.Print(err)
			return
		}
		fmt.Printf("%s: %s\n", received.Author, received.Text)
	})
	subscription.OnUnsubscribed(func(event centrifuge.UnsubscribedEvent) { fmt.Println("unsubscribed:", event.Reason) })
	if err := subscription.Subscribe(); err != nil {
		log.Fatal(err)
	}
	if err := client.Connect(); err != nil {
		log.Fatal(err)
	}

	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		data, err := json.Marshal(draft{Room: room, Text: lines.Text()})
		if err != nil {
			log.Fatal(err)
		}
		if _, err := client.RPC(context.Background(), "post", data); err != nil {
			fmt.Println("not posted:", err) // no SDK sends anything twice
		}
	}
}

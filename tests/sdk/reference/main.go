// The reference server of the conformance tests: the centrifuge library with its memory broker, which keeps five
// publications of each channel. Its rules are those of tests/sdk/app.py:
//
//	/ws             accepts clients; /fast the same, with a ping each second
//	token           "user" or "user|unix time of its expiry"; "refused" is refused, and one without a user is invalid
//	user "side..."  is subscribed to rec:feed-<user> by the server
//	channel         recoverable, with presence; "private:..." is refused, "jl:..." pushes joins and leaves,
//	                "token:..." needs a token of its own
//	RPC "echo"      returns what it is sent, as does a message
//
// POST /control/<call> with a JSON object is the server's own API; GET /ready answers when it runs.
package main

import (
	"context"
	"encoding/json"
	"log"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/centrifugal/centrifuge"
)

const expiryDelay = 2 * time.Second

// call is the body of a call of the server's API; each call uses some of its fields.
type call struct {
	User    string            `json:"user"`
	Channel string            `json:"channel"`
	Data    json.RawMessage   `json:"data"`
	Tags    map[string]string `json:"tags"`
	Code    uint32            `json:"code"`
	Reason  string            `json:"reason"`
}

func must(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

// parse returns the user and the expiry of a token, 0 for none.
func parse(token string) (string, int64, error) {
	user, expiry, expires := strings.Cut(token, "|")
	switch {
	case user == "":
		return "", 0, centrifuge.DisconnectInvalidToken
	case user == "refused":
		return "", 0, &centrifuge.Error{Code: 1000, Message: "refused"}
	case !expires:
		return user, 0, nil
	}
	expireAt, err := strconv.ParseInt(expiry, 10, 64)
	if err != nil {
		return "", 0, centrifuge.DisconnectInvalidToken
	}
	if expireAt <= time.Now().Unix() {
		return "", 0, centrifuge.ErrorTokenExpired
	}
	return user, expireAt, nil
}

func kept(call call) []centrifuge.PublishOption {
	return []centrifuge.PublishOption{centrifuge.WithHistory(5, time.Hour), centrifuge.WithTags(call.Tags)}
}

func connecting(_ context.Context, event centrifuge.ConnectEvent) (centrifuge.ConnectReply, error) {
	user, expireAt, err := parse(event.Token)
	if err != nil {
		return centrifuge.ConnectReply{}, err
	}
	reply := centrifuge.ConnectReply{
		Credentials:       &centrifuge.Credentials{UserID: user, ExpireAt: expireAt, Info: object("name", user)},
		ClientSideRefresh: true,
		Data:              object("hello", user),
	}
	if strings.HasPrefix(user, "side") {
		feed := centrifuge.SubscribeOptions{EnableRecovery: true, EnablePositioning: true}
		reply.Subscriptions = map[string]centrifuge.SubscribeOptions{"rec:feed-" + user: feed}
	}
	return reply, nil
}

func subscribe(event centrifuge.SubscribeEvent, answer centrifuge.SubscribeCallback) {
	joinLeave := strings.HasPrefix(event.Channel, "jl:")
	reply := centrifuge.SubscribeReply{
		ClientSideRefresh: true,
		Options: centrifuge.SubscribeOptions{
			EnableRecovery: true, EnablePositioning: true, EmitPresence: true,
			EmitJoinLeave: joinLeave, PushJoinLeave: joinLeave,
		},
	}
	var err error
	if strings.HasPrefix(event.Channel, "private:") {
		err = centrifuge.ErrorPermissionDenied
	} else if strings.HasPrefix(event.Channel, "token:") {
		_, reply.Options.ExpireAt, err = parse(event.Token)
	}
	answer(reply, err)
}

// connected sets what a client may do.
func connected(client *centrifuge.Client) {
	client.OnSubscribe(subscribe)
	client.OnPublish(func(event centrifuge.PublishEvent, answer centrifuge.PublishCallback) {
		options := centrifuge.PublishOptions{HistorySize: 5, HistoryTTL: time.Hour, ClientInfo: event.ClientInfo}
		answer(centrifuge.PublishReply{Options: options}, nil)
	})
	client.OnPresence(func(_ centrifuge.PresenceEvent, answer centrifuge.PresenceCallback) {
		answer(centrifuge.PresenceReply{}, nil)
	})
	client.OnPresenceStats(func(_ centrifuge.PresenceStatsEvent, answer centrifuge.PresenceStatsCallback) {
		answer(centrifuge.PresenceStatsReply{}, nil)
	})
	client.OnHistory(func(_ centrifuge.HistoryEvent, answer centrifuge.HistoryCallback) {
		answer(centrifuge.HistoryReply{}, nil)
	})
	client.OnRPC(func(event centrifuge.RPCEvent, answer centrifuge.RPCCallback) {
		if event.Method != "echo" {
			answer(centrifuge.RPCReply{}, centrifuge.ErrorMethodNotFound)
			return
		}
		answer(centrifuge.RPCReply{Data: event.Data}, nil)
	})
	client.OnMessage(func(event centrifuge.MessageEvent) {
		if err := client.Send(event.Data); err != nil {
			log.Print(err)
		}
	})
	client.OnRefresh(func(event centrifuge.RefreshEvent, answer centrifuge.RefreshCallback) {
		_, expireAt, err := parse(event.Token)
		answer(centrifuge.RefreshReply{Expired: err != nil, ExpireAt: expireAt}, nil)
	})
	client.OnSubRefresh(func(event centrifuge.SubRefreshEvent, answer centrifuge.SubRefreshCallback) {
		_, expireAt, err := parse(event.Token)
		answer(centrifuge.SubRefreshReply{Expired: err != nil, ExpireAt: expireAt}, nil)
	})
}

func object(key, value string) []byte {
	encoded, err := json.Marshal(map[string]string{key: value})
	must(err)
	return encoded
}

// control serves one call of the server's API.
func control(name string, apply func(call) error) {
	http.HandleFunc("POST /control/"+name, func(writer http.ResponseWriter, request *http.Request) {
		var given call
		err := json.NewDecoder(request.Body).Decode(&given)
		if err == nil {
			err = apply(given)
		}
		if err != nil {
			http.Error(writer, err.Error(), http.StatusBadRequest)
		}
	})
}

func main() {
	node, err := centrifuge.New(centrifuge.Config{
		Version: "reference", ClientExpiredCloseDelay: expiryDelay, ClientExpiredSubCloseDelay: expiryDelay,
	})
	must(err)
	node.OnConnecting(connecting)
	node.OnConnect(connected)
	must(node.Run())

	control("publish", func(call call) error {
		_, err := node.Publish(call.Channel, call.Data, kept(call)...)
		return err
	})
	control("subscribe", func(call call) error {
		recovery, positioning := centrifuge.WithRecovery(true), centrifuge.WithPositioning(true)
		return node.Subscribe(call.User, call.Channel, recovery, positioning)
	})
	control("unsubscribe", func(call call) error {
		reason := centrifuge.Unsubscribe{Code: call.Code, Reason: call.Reason}
		return node.Unsubscribe(call.User, call.Channel, centrifuge.WithCustomUnsubscribe(reason))
	})
	control("disconnect", func(call call) error {
		reason := centrifuge.Disconnect{Code: call.Code, Reason: call.Reason}
		return node.Disconnect(call.User, centrifuge.WithCustomDisconnect(reason))
	})
	http.HandleFunc("GET /ready", func(http.ResponseWriter, *http.Request) {})
	http.Handle("/ws", centrifuge.NewWebsocketHandler(node, centrifuge.WebsocketConfig{}))
	http.Handle("/fast", centrifuge.NewWebsocketHandler(node, centrifuge.WebsocketConfig{
		PingPongConfig: centrifuge.PingPongConfig{PingInterval: time.Second, PongTimeout: time.Second / 2},
	}))
	must(http.ListenAndServe("127.0.0.1:"+os.Getenv("PORT"), nil))
}

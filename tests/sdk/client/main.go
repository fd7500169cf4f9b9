// A client on centrifuge-go that a test drives: one JSON command per line on stdin, one JSON event per line on stdout.
// tests/sdk/sdk.py describes both; client.mjs and client.py are the same program on the other SDKs.
package main

import (
	"bufio"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"os"
	"sync"
	"time"

	"github.com/centrifugal/centrifuge-go"
)

const shortDelay = 20 * time.Millisecond

type object = map[string]any

type position struct {
	Offset uint64 `json:"offset"`
	Epoch  string `json:"epoch"`
}

// request is a command; each uses some of these arguments.
type request struct {
	ID            int             `json:"id"`
	Command       string          `json:"command"`
	URL           string          `json:"url"`
	Token         string          `json:"token"`
	Tokens        []*string       `json:"tokens"`
	MaxPingDelay  float64         `json:"max_ping_delay"`
	DefaultDelays bool            `json:"default_delays"`
	Data          json.RawMessage `json:"data"`
	Base64        string          `json:"base64"`
	Channel       string          `json:"channel"`
	Method        string          `json:"method"`
	Recoverable   bool            `json:"recoverable"`
	Positioned    bool            `json:"positioned"`
	JoinLeave     bool            `json:"join_leave"`
	States        []position      `json:"states"`
	Limit         int32           `json:"limit"`
	Since         *position       `json:"since"`
	Reverse       bool            `json:"reverse"`
}

func (c request) payload() []byte {
	if c.Base64 != "" {
		decoded, err := base64.StdEncoding.DecodeString(c.Base64)
		must(err)
		return decoded
	}
	return c.Data
}

func must(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

var output sync.Mutex

func emit(event string, fields object) {
	fields["event"] = event
	line, err := json.Marshal(fields)
	must(err)
	output.Lock()
	defer output.Unlock()
	_, err = os.Stdout.Write(append(line, '\n'))
	must(err)
}

// data returns a payload as JSON where it is JSON, otherwise as {"base64": ...}.
func data(payload []byte) any {
	if payload == nil {
		return nil
	}
	if json.Valid(payload) {
		return json.RawMessage(payload)
	}
	return object{"base64": base64.StdEncoding.EncodeToString(payload)}
}

func info(given *centrifuge.ClientInfo) any {
	if given == nil {
		return nil
	}
	return object{
		"user": given.User, "client": given.Client,
		"conn_info": data(given.ConnInfo), "chan_info": data(given.ChanInfo),
	}
}

func publication(given centrifuge.Publication) object {
	tags := given.Tags
	if tags == nil {
		tags = map[string]string{}
	}
	return object{"offset": given.Offset, "data": data(given.Data), "tags": tags, "info": info(given.Info)}
}

func on(channel string, fields object) object {
	fields["channel"] = channel
	return fields
}

func subscribed(
	channel string, recoverable, positioned, wasRecovering, recovered bool,
	at *centrifuge.StreamPosition, payload []byte,
) object {
	fields := object{
		"channel": channel, "recoverable": recoverable, "positioned": positioned,
		"was_recovering": wasRecovering, "recovered": recovered, "position": nil, "data": data(payload),
	}
	if at != nil {
		fields["position"] = position{at.Offset, at.Epoch}
	}
	return fields
}

// failure returns an error as the fields code, 0 for one that is not the server's, and message.
func failure(err error) object {
	var server *centrifuge.Error
	if errors.As(err, &server) {
		return object{"code": server.Code, "message": server.Message}
	}
	return object{"code": 0, "message": err.Error()}
}

// tokens returns a function that returns the given tokens in turn, the last one from then on; null is a refusal.
func tokens(given []*string, asked func()) func() (string, error) {
	if given == nil {
		return nil
	}
	next := 0
	return func() (string, error) {
		asked()
		token := given[min(next, len(given)-1)]
		next++
		if token == nil {
			return "", centrifuge.ErrUnauthorized
		}
		return *token, nil
	}
}

func create(protobuf bool, command request) *centrifuge.Client {
	config := centrifuge.Config{
		Token: command.Token, Data: command.payload(),
		MaxServerPingDelay: time.Duration(command.MaxPingDelay * float64(time.Second)),
	}
	if !command.DefaultDelays {
		config.MinReconnectDelay, config.MaxReconnectDelay = shortDelay, 5*shortDelay
	}
	if next := tokens(command.Tokens, func() { emit("get_token", object{}) }); next != nil {
		config.GetToken = func(centrifuge.ConnectionTokenEvent) (string, error) { return next() }
	}
	build := centrifuge.NewJsonClient
	if protobuf {
		build = centrifuge.NewProtobufClient
	}
	client := build(command.URL, config)
	client.OnConnecting(func(e centrifuge.ConnectingEvent) {
		emit("connecting", object{"code": e.Code, "reason": e.Reason})
	})
	client.OnConnected(func(e centrifuge.ConnectedEvent) {
		emit("connected", object{"client": e.ClientID, "data": data(e.Data)})
	})
	client.OnDisconnected(func(e centrifuge.DisconnectedEvent) {
		emit("disconnected", object{"code": e.Code, "reason": e.Reason})
	})
	client.OnError(func(e centrifuge.ErrorEvent) { emit("error", failure(e.Error)) })
	client.OnMessage(func(e centrifuge.MessageEvent) { emit("message", object{"data": data(e.Data)}) })
	client.OnSubscribing(func(e centrifuge.ServerSubscribingEvent) {
		emit("server_subscribing", object{"channel": e.Channel})
	})
	client.OnSubscribed(func(e centrifuge.ServerSubscribedEvent) {
		emit("server_subscribed", subscribed(
			e.Channel, e.Recoverable, e.Positioned, e.WasRecovering, e.Recovered, e.StreamPosition, e.Data,
		))
	})
	client.OnUnsubscribed(func(e centrifuge.ServerUnsubscribedEvent) {
		emit("server_unsubscribed", object{"channel": e.Channel})
	})
	client.OnPublication(func(e centrifuge.ServerPublicationEvent) {
		emit("server_publication", on(e.Channel, publication(e.Publication)))
	})
	client.OnJoin(func(e centrifuge.ServerJoinEvent) {
		emit("server_join", object{"channel": e.Channel, "info": info(&e.ClientInfo)})
	})
	client.OnLeave(func(e centrifuge.ServerLeaveEvent) {
		emit("server_leave", object{"channel": e.Channel, "info": info(&e.ClientInfo)})
	})
	return client
}

// subscription returns the subscription to a channel, made with the options of the first command for it.
func subscription(client *centrifuge.Client, command request) *centrifuge.Subscription {
	channel := command.Channel
	if found, exists := client.GetSubscription(channel); exists {
		return found
	}
	config := centrifuge.SubscriptionConfig{
		Token: command.Token, Data: command.payload(),
		Recoverable: command.Recoverable, Positioned: command.Positioned, JoinLeave: command.JoinLeave,
	}
	if !command.DefaultDelays {
		config.MinResubscribeDelay, config.MaxResubscribeDelay = shortDelay, 5*shortDelay
	}
	asked := func() { emit("get_subscription_token", object{"channel": channel}) }
	if next := tokens(command.Tokens, asked); next != nil {
		config.GetToken = func(centrifuge.SubscriptionTokenEvent) (string, error) { return next() }
	}
	if states := command.States; states != nil {
		config.GetState = func(centrifuge.SubscriptionGetStateEvent) (centrifuge.StreamPosition, error) {
			emit("get_state", object{"channel": channel})
			state := states[0]
			states = states[min(1, len(states)-1):]
			return centrifuge.StreamPosition{Offset: state.Offset, Epoch: state.Epoch}, nil
		}
	}
	made, err := client.NewSubscription(channel, config)
	must(err)
	made.OnSubscribing(func(e centrifuge.SubscribingEvent) {
		emit("subscribing", object{"channel": channel, "code": e.Code, "reason": e.Reason})
	})
	made.OnSubscribed(func(e centrifuge.SubscribedEvent) {
		emit("subscribed", subscribed(
			channel, e.Recoverable, e.Positioned, e.WasRecovering, e.Recovered, e.StreamPosition, e.Data,
		))
	})
	made.OnUnsubscribed(func(e centrifuge.UnsubscribedEvent) {
		emit("unsubscribed", object{"channel": channel, "code": e.Code, "reason": e.Reason})
	})
	made.OnPublication(func(e centrifuge.PublicationEvent) { emit("publication", on(channel, publication(e.Publication))) })
	made.OnJoin(func(e centrifuge.JoinEvent) {
		emit("join", object{"channel": channel, "info": info(&e.ClientInfo)})
	})
	made.OnLeave(func(e centrifuge.LeaveEvent) {
		emit("leave", object{"channel": channel, "info": info(&e.ClientInfo)})
	})
	made.OnError(func(e centrifuge.SubscriptionErrorEvent) {
		emit("subscription_error", on(channel, failure(e.Error)))
	})
	return made
}

// call runs a command whose result the server sends.
func call(client *centrifuge.Client, command request) (any, error) {
	ctx := context.Background()
	switch command.Command {
	case "publish":
		_, err := client.Publish(ctx, command.Channel, command.payload())
		return object{}, err
	case "rpc":
		result, err := client.RPC(ctx, command.Method, command.payload())
		return data(result.Data), err
	case "send":
		return object{}, client.Send(ctx, command.payload())
	case "presence":
		result, err := client.Presence(ctx, command.Channel)
		clients := object{}
		for id, present := range result.Clients {
			clients[id] = info(&present)
		}
		return clients, err
	case "presence_stats":
		result, err := client.PresenceStats(ctx, command.Channel)
		return object{"clients": result.NumClients, "users": result.NumUsers}, err
	case "history":
		options := []centrifuge.HistoryOption{
			centrifuge.WithHistoryLimit(command.Limit), centrifuge.WithHistoryReverse(command.Reverse),
		}
		if since := command.Since; since != nil {
			at := &centrifuge.StreamPosition{Offset: since.Offset, Epoch: since.Epoch}
			options = append(options, centrifuge.WithHistorySince(at))
		}
		result, err := client.History(ctx, command.Channel, options...)
		publications := []object{}
		for _, found := range result.Publications {
			publications = append(publications, publication(found))
		}
		return object{"publications": publications, "offset": result.Offset, "epoch": result.Epoch}, err
	}
	return nil, fmt.Errorf("unknown command %q", command.Command)
}

func done(command request, result any, err error) {
	if err != nil {
		emit("done", object{"id": command.ID, "error": failure(err)})
		return
	}
	emit("done", object{"id": command.ID, "result": result})
}

func main() {
	protobuf := os.Args[1] == "protobuf"
	var client *centrifuge.Client
	lines := bufio.NewReader(os.Stdin)
	for {
		line, err := lines.ReadBytes('\n')
		if err != nil {
			return // the test has ended
		}
		var command request
		must(json.Unmarshal(line, &command))
		switch command.Command {
		case "quit":
			return
		case "connect":
			if client == nil {
				client = create(protobuf, command)
			}
			_ = client.Connect() // reported as an event, too
			done(command, object{}, nil)
		case "disconnect":
			done(command, object{}, client.Disconnect())
		case "subscribe":
			done(command, object{}, subscription(client, command).Subscribe())
		case "unsubscribe":
			done(command, object{}, subscription(client, command).Unsubscribe())
		default:
			go func() {
				result, err := call(client, command)
				done(command, result, err)
			}()
		}
	}
}

// A server of the centrifuge library with its Redis broker. The channel stands in the URL, and a client is subscribed
// to it when it connects.
package main

import (
	"context"
	"log"
	"net/http"
	"net/url"
	"os"
	"strings"

	"github.com/centrifugal/centrifuge"
)

func must(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

type channelKey struct{}

// welcome lets every client in, and keeps the channel of its URL.
func welcome(next http.Handler) http.Handler {
	return http.HandlerFunc(func(writer http.ResponseWriter, request *http.Request) {
		ctx := centrifuge.SetCredentials(request.Context(), &centrifuge.Credentials{})
		ctx = context.WithValue(ctx, channelKey{}, request.URL.Query().Get("channel"))
		next.ServeHTTP(writer, request.WithContext(ctx))
	})
}

func main() {
	node, err := centrifuge.New(centrifuge.Config{LogLevel: centrifuge.LogLevelError})
	must(err)
	redis, err := url.Parse(os.Getenv("BENCH_REDIS_URL"))
	must(err)
	shard, err := centrifuge.NewRedisShard(node, centrifuge.RedisShardConfig{Address: redis.Host})
	must(err)
	broker, err := centrifuge.NewRedisBroker(node, centrifuge.RedisBrokerConfig{
		Shards: []*centrifuge.RedisShard{shard},
	})
	must(err)
	node.SetBroker(broker)

	node.OnConnecting(func(ctx context.Context, _ centrifuge.ConnectEvent) (centrifuge.ConnectReply, error) {
		subscriptions := map[string]centrifuge.SubscribeOptions{}
		if channel, _ := ctx.Value(channelKey{}).(string); channel != "" {
			subscriptions[channel] = centrifuge.SubscribeOptions{}
		}
		return centrifuge.ConnectReply{Subscriptions: subscriptions}, nil
	})
	node.OnConnect(func(client *centrifuge.Client) {
		client.OnMessage(func(event centrifuge.MessageEvent) {
			text := strings.Trim(string(event.Data), `"`)
			if _, err := node.Publish(text[8:12], event.Data); err != nil {
				log.Print(err)
			}
		})
	})
	must(node.Run())

	http.Handle("/ws", welcome(centrifuge.NewWebsocketHandler(node, centrifuge.WebsocketConfig{})))
	must(http.ListenAndServe("127.0.0.1:"+os.Getenv("PORT"), nil))
}

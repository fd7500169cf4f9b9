// A client on centrifuge-js that a test drives: one JSON command per line on stdin, one JSON event per line on stdout.
// tests/sdk/sdk.py describes both; client.py and client/main.go are the same program on the other SDKs.
// It runs in the folder whose node_modules holds the packages.
import { createRequire } from 'node:module'
import { createInterface } from 'node:readline'

const SHORT_DELAY_MS = 20

const require = createRequire(`${process.cwd()}/`)
const protobuf = process.argv[2] === 'protobuf'
const { Centrifuge, UnauthorizedError } = require(protobuf ? 'centrifuge/build/protobuf' : 'centrifuge')
const WebSocket = require('ws')

const emit = (event, fields) => process.stdout.write(`${JSON.stringify({ event, ...fields })}\n`)

/** Return what is sent for the arguments `data`, a JSON value, or `base64`, bytes. */
const payload = ({ data, base64 }) => {
  if (base64) return Buffer.from(base64, 'base64')
  if (data === undefined) return null
  return protobuf ? new TextEncoder().encode(JSON.stringify(data)) : data
}

/** Return a payload as JSON where it is JSON, otherwise as {base64}. */
const data = given => {
  if (given === undefined || given === null) return null
  if (!protobuf) return given
  const bytes = Buffer.from(given)
  try {
    return JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(bytes))
  } catch {
    return bytes.length ? { base64: bytes.toString('base64') } : null
  }
}

const info = given => given && {
  user: given.user, client: given.client, conn_info: data(given.connInfo), chan_info: data(given.chanInfo)
}

const publication = given => ({
  offset: given.offset ?? 0, data: data(given.data), tags: given.tags ?? {}, info: info(given.info) ?? null
})

const subscribed = given => ({
  channel: given.channel,
  recoverable: given.recoverable,
  positioned: given.positioned,
  was_recovering: given.wasRecovering,
  recovered: given.recovered,
  has_recovered_publications: given.hasRecoveredPublications,
  position: given.streamPosition ?? null,
  data: data(given.data)
})

/** Return an error as the fields code, below 100 for one that is not the server's, and message. */
const failure = error => ({ code: error.code ?? 0, message: error.message ?? String(error) })

/** Return a function that returns the given items in turn, the last one from then on. */
const inTurn = items => {
  let next = 0
  return () => items[Math.min(next++, items.length - 1)]
}

/** Return what the SDK calls for a token; null is a refusal. */
const tokens = (given, asked) => {
  if (!given) return null
  const next = inTurn(given)
  return async () => {
    asked()
    const token = next()
    if (token === null) throw new UnauthorizedError('refused')
    return token
  }
}

const create = command => {
  const delays = command.default_delays
    ? {}
    : { minReconnectDelay: SHORT_DELAY_MS, maxReconnectDelay: 5 * SHORT_DELAY_MS }
  const ping = command.max_ping_delay === undefined ? {} : { maxServerPingDelay: 1000 * command.max_ping_delay }
  const client = new Centrifuge(command.url, {
    websocket: WebSocket,
    token: command.token ?? '',
    getToken: tokens(command.tokens, () => emit('get_token')),
    data: payload(command),
    ...delays,
    ...ping
  })
  const on = (event, shape, name = event) => client.on(event, given => emit(name, shape(given)))
  const change = ({ code, reason }) => ({ code, reason })
  on('connecting', change)
  on('connected', given => ({ client: given.client, data: data(given.data) }))
  on('disconnected', change)
  on('error', given => failure(given.error))
  on('message', given => ({ data: data(given.data) }))
  on('subscribing', ({ channel }) => ({ channel }), 'server_subscribing')
  on('subscribed', subscribed, 'server_subscribed')
  on('unsubscribed', ({ channel }) => ({ channel }), 'server_unsubscribed')
  on('publication', given => ({ channel: given.channel, ...publication(given) }), 'server_publication')
  on('join', given => ({ channel: given.channel, info: info(given.info) }), 'server_join')
  on('leave', given => ({ channel: given.channel, info: info(given.info) }), 'server_leave')
  return client
}

/** Return the subscription to a channel, made with the options of the first command for it. */
const subscription = command => {
  const { channel } = command
  const found = client.getSubscription(channel)
  if (found) return found
  const delays = command.default_delays
    ? {}
    : { minResubscribeDelay: SHORT_DELAY_MS, maxResubscribeDelay: 5 * SHORT_DELAY_MS }
  const state = command.states && inTurn(command.states)
  const made = client.newSubscription(channel, {
    token: command.token ?? '',
    getToken: tokens(command.tokens, () => emit('get_subscription_token', { channel })),
    data: payload(command),
    recoverable: command.recoverable ?? false,
    positioned: command.positioned ?? false,
    joinLeave: command.join_leave ?? false,
    ...(state && {
      getState: async () => {
        emit('get_state', { channel })
        return state()
      }
    }),
    ...delays
  })
  const on = (event, shape, name = event) => made.on(event, given => emit(name, { channel, ...shape(given) }))
  const change = ({ code, reason }) => ({ code, reason })
  on('subscribing', change)
  on('subscribed', subscribed)
  on('unsubscribed', change)
  on('publication', publication)
  on('join', given => ({ info: info(given.info) }))
  on('leave', given => ({ info: info(given.info) }))
  on('error', given => failure(given.error), 'subscription_error')
  return made
}

const commands = {
  connect: command => {
    client ??= create(command)
    client.connect()
  },
  disconnect: () => client.disconnect(),
  subscribe: command => subscription(command).subscribe(),
  unsubscribe: command => subscription(command).unsubscribe(),
  publish: command => client.publish(command.channel, payload(command)),
  send: command => client.send(payload(command)),
  rpc: async command => data((await client.rpc(command.method, payload(command))).data),
  presence: async command => {
    const { clients } = await client.presence(command.channel)
    return Object.fromEntries(Object.entries(clients).map(([id, present]) => [id, info(present)]))
  },
  presence_stats: async command => {
    const { numClients, numUsers } = await client.presenceStats(command.channel)
    return { clients: numClients, users: numUsers }
  },
  history: async command => {
    const { publications, offset, epoch } = await client.history(command.channel, {
      limit: command.limit ?? 0,
      reverse: command.reverse ?? false,
      ...(command.since && { since: command.since })
    })
    return { publications: publications.map(publication), offset, epoch }
  },
  quit: () => process.exit(0)
}

let client = null

createInterface({ input: process.stdin }).on('line', async line => {
  const command = JSON.parse(line)
  try {
    emit('done', { id: command.id, result: (await commands[command.command](command)) ?? {} })
  } catch (error) {
    emit('done', { id: command.id, error: failure(error) })
  }
}).on('close', () => process.exit(0)) // the test has ended

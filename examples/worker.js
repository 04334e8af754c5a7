// A KQS worker with the npm package qrpc: node worker.js [PORT [HOST]]. It ends well with SIGTERM.
'use strict'

const qrpc = require('qrpc')

const [port = 14151, host = '127.0.0.1'] = process.argv.slice(2)
const sleep = (seconds) => new Promise((resolve) => setTimeout(resolve, 1000 * seconds))

// What it can do, by job type. What a handler returns is the job's result. What it throws has the job tried
// again (after error.delay seconds, if it has one), or buried, if error.outcome is 'fail'. Bytes come as a Buffer.
const handlers = {
  'page.size': async ({ url }, signal) => {
    const response = await fetch(url, { signal })
    if (response.ok) return (await response.arrayBuffer()).byteLength
    const error = new Error(`${url}: status ${response.status}`)
    throw Object.assign(error, response.status < 500 ? { outcome: 'fail' } : { delay: 1 })
  }
}

let connection = null // a promise of the client
const lost = new Set() // what rejects the calls on it that are not answered

function connected () {
  connection ??= new Promise((resolve, reject) => {
    const client = qrpc.connect(Number(port), host, () => resolve(client))
    client.target.on('error', reject).on('close', () => {
      connection = null
      for (const fail of [reject, ...lost]) fail(new Error('closed'))
      lost.clear()
    })
  })
  return connection
}

let stopping = false

// Makes a call again and again until a server answers: reserve, renew and settle may all be repeated.
async function call (name, argument) {
  while (!stopping || name !== 'reserve') {
    try {
      const client = await connected()
      return await new Promise((resolve, reject) => {
        lost.add(reject)
        client.call(name, argument, (error, value) => { lost.delete(reject); error ? reject(error) : resolve(value) })
      })
    } catch (error) {
      if (/^[a-z]/.test(error.code ?? '')) throw error // KQS refused it; Node's own codes are in capitals
      await sleep(0.1 + Math.random())
    }
  }
  return { jobs: [] }
}

async function run (job) {
  const ended = new AbortController() // the lease: then somebody else may have the job
  const end = () => ended.abort(new Error('the lease is lost'))
  let timer = setTimeout(end, 1000 * job.ttr)
  const renewing = setInterval(async () => {
    const sent = Date.now()
    const { renewed } = await call('renew', { receipts: [job.receipt] })
    clearTimeout(timer)
    timer = renewed.length ? setTimeout(end, sent + 1000 * job.ttr - Date.now()) : end()
  }, 1000 * job.ttr / 3)
  let settlement
  try {
    const data = job.data64 === undefined ? job.data : Buffer.from(job.data64, 'base64')
    settlement = { outcome: 'ok', result: await handlers[job.type](data, ended.signal) }
  } catch (error) {
    const reason = { message: error.message, kind: error.name, traceback: error.stack }
    settlement = { outcome: error.outcome ?? 'again', delay: error.delay, reason }
  }
  clearInterval(renewing)
  clearTimeout(timer)
  if (!ended.signal.aborted) await call('settle', [{ receipt: job.receipt, ...settlement }])
}

process.on('SIGTERM', () => {
  stopping = true
  connection?.then((client) => client.target.end(), () => {}) // has a reserve that waits answered
})

async function work () {
  while (!stopping) {
    const { jobs } = await call('reserve', { types: Object.keys(handlers), max: 10, wait: 10 })
    await Promise.all(jobs.map(run))
  }
  process.exit()
}

work()

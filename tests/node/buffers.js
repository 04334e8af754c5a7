// Buffers as arguments and as values.
'use strict'

const { main } = require('./lib')

const sizes = [2, 3, 4, 255, 256, 65535, 65536, 10 * 1024 * 1024]

main(async function (call) {
  let bytes = 0
  for (let byte = 0; byte < 256; byte++) {
    const back = await call('echo', Buffer.from([byte]))
    if (Buffer.isBuffer(back) && back.length === 1 && back[0] === byte) bytes++
  }
  const same = []
  for (const size of sizes) {
    const sent = Buffer.alloc(size)
    for (let at = 0; at < size; at++) sent[at] = (at * 7 + (at >> 8)) & 255
    const back = await call('echo', sent)
    same.push(Buffer.isBuffer(back) && back.equals(sent))
  }
  const all = Buffer.from(Array.from({ length: 256 }, (_, byte) => byte))
  return {
    bytes: bytes,
    same: same,
    empty: typeof (await call('echo', Buffer.alloc(0))),
    inserted: await call('insert', { type: 'buffer', data: all }),
    insertedEmpty: await call('insert', { type: 'buffer', data: Buffer.alloc(0) })
  }
})

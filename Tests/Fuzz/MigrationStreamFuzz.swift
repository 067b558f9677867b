// libFuzzer target for the parser of QEMU's stream; not part of `swift build`. Run it with Tests/Fuzz/run.sh.
import Glibc
import MigrationStream

/// Counts pages and checks what the parser promises: no page outside its block.
private struct Checker: PageSink {
    var list: [RAMBlock] = []
    var sum = 0

    mutating func blocks(_ blocks: [RAMBlock]) { list = blocks }

    mutating func page(block: Int, offset: UInt64, bytes: UnsafeRawPointer) {
        check(block, offset)
        // Touch both ends, for the address sanitizer.
        sum &+= Int(bytes.load(as: UInt8.self)) &+ Int((bytes + 4095).load(as: UInt8.self))
    }

    mutating func fill(block: Int, offset: UInt64, byte: UInt8) { check(block, offset) }

    private func check(_ block: Int, _ offset: UInt64) {
        precondition(list.indices.contains(block) && offset % 4096 == 0 && offset < list[block].length)
    }
}

/// A first pass of one block of 4 pages, so that inputs of the second kind start with an epoch.
private let opening: [UInt8] = [
    0x51, 0x45, 0x56, 0x4d, 0, 0, 0, 3,                                             // QEVM 3
    1, 0, 0, 0, 2, 3, 0x72, 0x61, 0x6d, 0, 0, 0, 0, 0, 0, 0, 4,                     // start, 2, "ram", 0, 4
    0, 0, 0, 0, 0, 0, 0x40, 4, 1, 0x78, 0, 0, 0, 0, 0, 0, 0x40, 0,                  // block list: "x" of 0x4000
    0, 0, 0, 0, 0, 0, 0, 0x10, 0x7e, 0, 0, 0, 2,                                    // EOS, footer
    3, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0x10, 0x7e, 0, 0, 0, 2,                     // end, 2, EOS, footer
]

private func feed(_ fd: Int32, _ bytes: UnsafeRawPointer, _ count: Int) {
    // Everything fits the socket's buffer (run.sh limits inputs to 64 KiB), so one thread is enough.
    _ = send(fd, bytes, count, Int32(MSG_DONTWAIT) | Int32(MSG_NOSIGNAL))
}

private func run(_ data: UnsafePointer<UInt8>, _ count: Int) throws(StreamError) {
    var ends: [Int32] = [-1, -1]
    guard socketpair(AF_UNIX, Int32(SOCK_STREAM.rawValue), 0, &ends) == 0 else { return }
    defer { ends.forEach { close($0) } }
    var size: Int32 = 1 << 20
    setsockopt(ends[1], SOL_SOCKET, Int32(SO_SNDBUF), &size, 4)
    let reader = StreamReader(fd: ends[0], pool: ChunkPool(chunkBytes: 64 << 10, limitBytes: 4 << 20))
    let dialogue = COLODialogue(reader: reader)
    var sink = Checker()
    let epochsOnly = count > 0 && data[0] & 1 == 1
    if epochsOnly { feed(ends[1], opening, opening.count) }
    if !epochsOnly {
        if count > 1 { feed(ends[1], data + 1, count - 1) }
        shutdown(ends[1], Int32(SHUT_WR))
    }
    _ = try dialogue.firstPass(into: &sink)
    guard epochsOnly else {
        _ = try dialogue.drainFirstDeviceState()
        return
    }
    _ = try dialogue.drainFirstDeviceState()
    try dialogue.sendReady()
    if count > 1 { feed(ends[1], data + 1, count - 1) }
    shutdown(ends[1], Int32(SHUT_WR))
    while true {
        try dialogue.awaitRequest()
        try dialogue.reply()
        let early = data[0] & 2 == 2
        _ = try dialogue.receiveEpoch(into: &sink, acknowledgeEarly: early)
        if !early { try dialogue.acknowledge() }
        for chunk in reader.takeChunks() { reader.pool.give(chunk) }
    }
}

@_cdecl("LLVMFuzzerTestOneInput")
public func fuzz(_ data: UnsafePointer<UInt8>, _ count: Int) -> Int32 {
    guard count > 0 else { return 0 }
    do { try run(data, count) } catch {}
    return 0
}

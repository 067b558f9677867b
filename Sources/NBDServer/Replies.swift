import Glibc
import Platform

/// Replies with content. A simple one is followed by the data of a READ. Structured ones are chunks, big-endian:
///
///      0  u32 0x668e33ef   u16 flags: 1 the last one   u16 type   u64 cookie   u32 length of what follows
///     20  type 0      nothing
///         type 1      u64 offset, data                READ
///         type 2      u64 offset, u32 length          READ: zeros
///         type 5      u32 context, n x { u32 length, u32 state }   BLOCK_STATUS
///         type 0x8001 u32 error, u16 length, message
extension Transmission {
    /// More extents than these are not told in one reply; clients ask on.
    private static let mostExtents = 1024
    /// Runs of zeros shorter than this are sent: to skip them costs as much.
    private static let leastHoleBytes: UInt64 = 4096
    private static let mostMessageBytes = 1024

    mutating func fail(_ request: Request, _ error: NBDError) throws(NBDProtocolError) {
        guard rules.structuredReplies else { return try simpleReply(request.cookie, error.wireCode) }
        let message = Array(error.message.utf8.prefix(Transmission.mostMessageBytes))
        let content = try chunk(.error, request, last: true, room: 6 + message.count)
        content.storeBig(error.wireCode, 0)
        content.storeBig(UInt16(message.count), 4)
        (content + 6).copyMemory(from: message, byteCount: message.count)
    }

    /// Room for the content of a chunk, its header before it. `attached` bytes are going to follow.
    private mutating func chunk(_ type: ChunkType, _ request: Request, last: Bool, room: Int,
                                attached: Int = 0) throws(NBDProtocolError) -> UnsafeMutableRawPointer {
        let place = try channel.reply(Wire.chunkHeaderBytes + room)
        place.storeBig(Wire.structuredReply, 0)
        place.storeBig(last ? ChunkType.done : 0, 4)
        place.storeBig(type.rawValue, 6)
        place.storeBig(request.cookie, 8)
        place.storeBig(UInt32(room + attached), 16)
        return place + Wire.chunkHeaderBytes
    }

    // MARK: READ

    mutating func read(_ request: Request, _ export: some NBDExport) throws(NBDProtocolError) {
        let length = Int(request.length)
        let memory: UnsafeMutableRawPointer
        var extents = ExtentList(limit: Transmission.mostExtents, total: UInt64(length))
        do {
            memory = try readBase()
            if rules.structuredReplies, !request.flags.contains(.doNotFragment) {
                // What cannot be told is data.
                try? export.blockStatus(offset: request.offset, length: UInt64(length), firstOnly: false) { extents.add($0, $1) }
                extents.mergeHoles(below: Transmission.leastHoleBytes)
            }
            extents.fill([])
            // All of it before the first chunk: an error is told instead of data, not after it.
            var done = 0
            for extent in extents.list {
                let size = Int(extent.length)
                if !extent.state.contains(.zero) {
                    try export.read(offset: request.offset + UInt64(done), into: UnsafeMutableRawBufferPointer(start: memory + done, count: size))
                }
                done += size
            }
        } catch {
            return try fail(request, error)
        }
        if rules.structuredReplies {
            try sendChunks(request, extents, memory)
        } else {
            try simpleReply(request.cookie, 0)
            try channel.attach(memory, length)
        }
        try channel.flush()
    }

    private mutating func sendChunks(_ request: Request, _ extents: ExtentList, _ memory: UnsafeMutableRawPointer) throws(NBDProtocolError) {
        var done = 0
        for (index, extent) in extents.list.enumerated() {
            let last = index == extents.list.count - 1
            let size = Int(extent.length)
            let offset = request.offset + UInt64(done)
            if extent.state.contains(.zero) {
                let content = try chunk(.offsetHole, request, last: last, room: 12)
                content.storeBig(offset, 0)
                content.storeBig(UInt32(size), 8)
            } else {
                try chunk(.offsetData, request, last: last, room: 8, attached: size).storeBig(offset, 0)
                try channel.attach(memory + done, size)
            }
            done += size
        }
    }

    private mutating func readBase() throws(NBDError) -> UnsafeMutableRawPointer {
        if let readMemory { return readMemory.base }
        do {
            let memory = try MappedMemory.anonymous(Int(rules.maximumPayload))
            readMemory = memory
            return memory.base
        } catch {
            throw NBDError(ENOMEM, error.description)
        }
    }

    // MARK: BLOCK_STATUS

    mutating func blockStatus(_ request: Request, _ export: some NBDExport) throws(NBDProtocolError) {
        let one = request.flags.contains(.requestOne)
        var extents = ExtentList(limit: one ? 1 : Transmission.mostExtents, total: UInt64(request.length))
        do {
            try export.blockStatus(offset: request.offset, length: UInt64(request.length), firstOnly: one) { extents.add($0, $1) }
        } catch {
            return try fail(request, error)
        }
        // An export that tells nothing has data there.
        if extents.list.isEmpty { extents.fill([]) }
        let content = try chunk(.blockStatus, request, last: true, room: 4 + 8 * extents.list.count)
        content.storeBig(Wire.allocationContextID, 0)
        for (index, extent) in extents.list.enumerated() {
            content.storeBig(UInt32(extent.length), 4 + 8 * index)
            content.storeBig(extent.state.rawValue, 8 + 8 * index)
        }
    }
}

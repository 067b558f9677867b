import Platform

/// What client and server have agreed on when transmission begins.
struct Agreement {
    var exportIndex: Int
    var structuredReplies: Bool
    /// The client has chosen `base:allocation`, so it may ask for BLOCK_STATUS.
    var allocation: Bool
}

/// The fixed newstyle handshake. All numbers big-endian.
///
///     server   u64 "NBDMAGIC"  u64 "IHAVEOPT"  u16 flags: 1 fixed newstyle, 2 no zeroes
///     client   u32 flags, the same
///     client   u64 "IHAVEOPT"  u32 option  u32 length  data                                        } any number
///     server   u64 0x3e889045565a9  u32 option  u32 reply, bit 31: error  u32 length  data         } of times
///
///     greeting --flags--> options --GO, acknowledged--------------------> transmission
///                          |  ^  '--EXPORT_NAME: u64 size, u16 flags,------^
///                          |  |     124 zero bytes unless "no zeroes"
///                          |  '--every other option and every refusal
///                          '--ABORT, garbage, no more time-------------> end
struct Handshake {
    private static let mostOptionBytes = 32 << 10
    /// Options beyond the limit are read and refused up to this length; beyond it is no client of NBD.
    private static let mostDrainedBytes = 1 << 20

    let exports: [any NBDExport]
    let settings: Settings
    let claims: ExportClaims
    let deadline: MonotonicTime
    /// The export that this connection has been given; whoever ends the connection releases it.
    private(set) var claimed: Int?

    private var fixed = false
    private var noZeroes = false
    private var structuredReplies = false
    /// The export for which `base:allocation` was chosen.
    private var allocationFor: Int?

    init(exports: [any NBDExport], settings: Settings, claims: ExportClaims) {
        self.exports = exports
        self.settings = settings
        self.claims = claims
        deadline = MonotonicTime.now.adding(milliseconds: settings.handshakeSeconds * 1000)
    }

    /// Until transmission begins; nil when the client took its leave.
    mutating func run(_ channel: inout Channel) throws(NBDProtocolError) -> Agreement? {
        try greet(&channel)
        while true {
            switch try option(&channel) {
            case .next: continue
            case .leave:
                try channel.flush()
                return nil
            case .begin(let index):
                try channel.flush()
                return Agreement(exportIndex: index, structuredReplies: structuredReplies,
                                 allocation: structuredReplies && allocationFor == index)
            }
        }
    }

    private mutating func greet(_ channel: inout Channel) throws(NBDProtocolError) {
        let greeting = try channel.reply(18)
        greeting.storeBig(Wire.greeting, 0)
        greeting.storeBig(Wire.option, 8)
        greeting.storeBig(Wire.fixedNewstyle | Wire.noZeroes, 16)
        try channel.need(4, deadline: deadline, during: "the handshake")
        let flags = channel.bytes.big(0, as: UInt32.self)
        channel.take(4)
        guard flags & ~UInt32(Wire.fixedNewstyle | Wire.noZeroes) == 0 else { throw .unknownClientFlags(flags) }
        fixed = flags & UInt32(Wire.fixedNewstyle) != 0
        noZeroes = flags & UInt32(Wire.noZeroes) != 0
    }

    private enum Step {
        case next, leave
        case begin(Int)
    }

    private mutating func option(_ channel: inout Channel) throws(NBDProtocolError) -> Step {
        try channel.need(Wire.optionHeaderBytes, deadline: deadline, during: "the handshake")
        let at = channel.position
        let magic = channel.bytes.big(0, as: UInt64.self)
        let number = channel.bytes.big(8, as: UInt32.self)
        let length = Int(channel.bytes.big(12, as: UInt32.self))
        guard magic == Wire.option else { throw .badOptionMagic(magic, at: at) }
        channel.take(Wire.optionHeaderBytes)
        guard fixed || number == Option.exportName.rawValue else { throw .optionWithoutFixedHandshake(number, at: at) }
        let limit = number == Option.exportName.rawValue ? Wire.mostNameBytes : Handshake.mostOptionBytes
        if length > limit {
            guard length <= Handshake.mostDrainedBytes, number != Option.exportName.rawValue else {
                throw .optionTooLong(number, length: length, limit: limit, at: at)
            }
            try channel.drain(length, deadline: deadline, during: "the handshake")
            try refuse(number, .tooBig, "\(Option.name(number)) has \(length) bytes, the limit is \(limit)", &channel)
            return .next
        }
        try channel.need(length, deadline: deadline, during: "the handshake")
        let data = UnsafeRawBufferPointer(start: channel.bytes, count: length)
        // The answers go to the other buffer, so the data stays until it is taken.
        let step = try answer(number, data, at: at, &channel)
        channel.take(length)
        return step
    }

    private mutating func answer(_ number: UInt32, _ data: UnsafeRawBufferPointer, at: UInt64,
                                 _ channel: inout Channel) throws(NBDProtocolError) -> Step {
        switch Option(rawValue: number) {
        case .exportName: return try exportName(String(decoding: data, as: UTF8.self), at: at, &channel)
        case .abort:
            try acknowledge(number, &channel)
            return .leave
        case .list: try list(number, data, &channel)
        case .info, .go: return try information(number, data, &channel)
        case .structuredReply:
            guard data.isEmpty else {
                try refuse(number, .invalid, "STRUCTURED_REPLY has no data", &channel)
                return .next
            }
            structuredReplies = true
            try acknowledge(number, &channel)
        case .listMetaContext, .setMetaContext: try contexts(number, data, &channel)
        case .startTLS: try refuse(number, .unsupported, "This is a local socket, without TLS", &channel)
        default: try refuse(number, .unsupported, "\(Option.name(number)) is not supported", &channel)
        }
        return .next
    }

    // MARK: The options

    /// The only export goes by the empty name, too. With several that would be a guess at which disk is overwritten.
    private func find(_ name: String) -> Int? {
        if let index = exports.firstIndex(where: { $0.name == name }) { return index }
        return name.isEmpty && exports.count == 1 ? 0 : nil
    }

    private mutating func claim(_ index: Int) -> Bool {
        guard claims.claim(index, alone: !exports[index].allowsSeveralConnections) else { return false }
        claimed = index
        return true
    }

    private mutating func exportName(_ name: String, at: UInt64, _ channel: inout Channel) throws(NBDProtocolError) -> Step {
        guard let index = find(name) else { throw .noSuchExport(name, at: at) }
        guard claim(index) else { throw .exportInUse(name, at: at) }
        let padding = noZeroes ? 0 : 124
        let reply = try channel.reply(10 + padding)
        reply.storeBig(exports[index].byteCount, 0)
        reply.storeBig(exports[index].flags(structuredReplies: structuredReplies).rawValue, 8)
        for place in 10..<(10 + padding) { reply.storeBytes(of: 0, toByteOffset: place, as: UInt8.self) }
        return .begin(index)
    }

    private func list(_ number: UInt32, _ data: UnsafeRawBufferPointer, _ channel: inout Channel) throws(NBDProtocolError) {
        guard data.isEmpty else { return try refuse(number, .invalid, "LIST has no data", &channel) }
        for export in exports {
            let name = limited(export.name)
            try reply(number, .server, UInt32(name.count).bigEndianBytes + name + limited(export.description), &channel)
        }
        try acknowledge(number, &channel)
    }

    private mutating func information(_ number: UInt32, _ data: UnsafeRawBufferPointer,
                                      _ channel: inout Channel) throws(NBDProtocolError) -> Step {
        var parser = OptionData(data)
        let request: (export: String, wanted: [Information])
        do {
            request = try parser.informationRequest()
        } catch {
            try refuse(number, .invalid, error.message, &channel)
            return .next
        }
        guard let index = find(request.export) else {
            try refuse(number, .unknown, "There is no export '\(request.export)'", &channel)
            return .next
        }
        let entering = number == Option.go.rawValue
        if settings.minimumBlock > 1, !request.wanted.contains(.blockSize) {
            try refuse(number, .blockSizeRequired, "Requests have to be multiples of \(settings.minimumBlock) bytes", &channel)
            return .next
        }
        if entering, !claim(index) {
            try refuse(number, .policy, "Another client has export '\(request.export)'", &channel)
            return .next
        }
        try tell(number, exports[index], request.wanted, &channel)
        try acknowledge(number, &channel)
        return entering ? .begin(index) : .next
    }

    /// The size and the block sizes always, the rest as asked for.
    private func tell(_ number: UInt32, _ export: any NBDExport, _ wanted: [Information],
                      _ channel: inout Channel) throws(NBDProtocolError) {
        let flags = export.flags(structuredReplies: structuredReplies).rawValue
        try reply(number, .info, Information.export.rawValue.bigEndianBytes + export.byteCount.bigEndianBytes + flags.bigEndianBytes,
                  &channel)
        var sizes = Information.blockSize.rawValue.bigEndianBytes
        for size in [settings.minimumBlock, settings.preferredBlock, settings.maximumPayload] { sizes += UInt32(size).bigEndianBytes }
        try reply(number, .info, sizes, &channel)
        if wanted.contains(.name) { try reply(number, .info, Information.name.rawValue.bigEndianBytes + limited(export.name), &channel) }
        if wanted.contains(.description) {
            try reply(number, .info, Information.description.rawValue.bigEndianBytes + limited(export.description), &channel)
        }
    }

    private mutating func contexts(_ number: UInt32, _ data: UnsafeRawBufferPointer, _ channel: inout Channel) throws(NBDProtocolError) {
        let listing = number == Option.listMetaContext.rawValue
        // A new choice replaces the old one, also when it is refused.
        if !listing { allocationFor = nil }
        guard structuredReplies else {
            return try refuse(number, .invalid, "\(Option.name(number)) comes after STRUCTURED_REPLY", &channel)
        }
        var parser = OptionData(data)
        let request: (export: String, queries: Int, allocation: Bool)
        do {
            request = try parser.contextRequest(byNamespace: listing)
        } catch {
            return try refuse(number, .invalid, error.message, &channel)
        }
        guard let index = find(request.export) else {
            return try refuse(number, .unknown, "There is no export '\(request.export)'", &channel)
        }
        if exports[index].canRead, request.allocation || (listing && request.queries == 0) {
            if !listing { allocationFor = index }
            // In a list the number means nothing.
            let identifier = listing ? 0 : Wire.allocationContextID
            try reply(number, .metaContext, identifier.bigEndianBytes + Array(Wire.allocationContext.utf8), &channel)
        }
        try acknowledge(number, &channel)
    }

    // MARK: Replies

    private func acknowledge(_ number: UInt32, _ channel: inout Channel) throws(NBDProtocolError) {
        try reply(number, .acknowledge, [], &channel)
    }

    private func refuse(_ number: UInt32, _ why: OptionReply, _ message: String, _ channel: inout Channel) throws(NBDProtocolError) {
        try reply(number, why, limited(message), &channel)
    }

    private func reply(_ number: UInt32, _ kind: OptionReply, _ data: [UInt8], _ channel: inout Channel) throws(NBDProtocolError) {
        let header = 20
        let place = try channel.reply(header + data.count)
        place.storeBig(Wire.optionReply, 0)
        place.storeBig(number, 8)
        place.storeBig(kind.rawValue, 12)
        place.storeBig(UInt32(data.count), 16)
        (place + header).copyMemory(from: data, byteCount: data.count)
    }

    private func limited(_ text: String) -> [UInt8] { Array(text.utf8.prefix(Wire.mostNameBytes)) }
}

extension NBDExport {
    /// What clients may send.
    func flags(structuredReplies: Bool) -> TransmissionFlags {
        var flags: TransmissionFlags = [.hasFlags, .sendFlush]
        if isReadOnly {
            flags.insert(.readOnly)
        } else {
            flags.formUnion([.sendFUA, .sendTrim, .sendWriteZeroes, .sendFastZero])
        }
        if structuredReplies { flags.insert(.sendDF) }
        if allowsSeveralConnections { flags.insert(.canMultiConn) }
        return flags
    }
}

extension FixedWidthInteger {
    var bigEndianBytes: [UInt8] { withUnsafeBytes(of: bigEndian) { Array($0) } }
}

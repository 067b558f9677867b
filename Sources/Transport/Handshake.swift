import Foundation
import Platform

/// What a peer connection is for.
public enum ConnectionPurpose: UInt8, Sendable {
    /// Requests and answers between services.
    case control = 1
    /// The epochs of one session.
    case data = 2
}

/// Why two services did not come to terms.
public enum HandshakeError: Error, CustomStringConvertible, Sendable {
    case notShadowVirt(String)
    case version(ours: UInt16, theirs: UInt16)
    case wrongSecret(peer: String)
    case refused(String)
    /// The peer does not know the session that a data connection was for: it restarted, or gave it up.
    case unknownSession(String)
    case channel(ChannelError)

    public var description: String {
        switch self {
        case .notShadowVirt(let peer): "\(peer) does not speak shadow-virt's protocol"
        case .version(let ours, let theirs): "The peer speaks protocol version \(theirs), this host \(ours): install the same release on both"
        case .wrongSecret(let peer): "\(peer) holds another secret: copy the same secret_file to both hosts"
        case .refused(let reason): "The peer refused the connection: \(reason)"
        case .unknownSession(let reason): reason
        case .channel(let error): error.description
        }
    }
}

/// The opening of every connection between two hosts, all numbers little-endian:
///
///     initiator -> acceptor   "SVP1" | u16 version | u8 purpose | 16 session | 32 nonce | u8 length | name
///     acceptor -> initiator   "SVP1" | u16 version | 32 nonce | 32 HMAC("acceptor", both hellos)
///     initiator -> acceptor   32 HMAC("initiator", both hellos)
///     acceptor -> initiator   u8 verdict | u16 length | reason      1 welcome, 0 refused, 2 unknown session
///
/// Both prove that they know the secret over nonces of both, so that a recorded exchange proves nothing later; the labels keep
/// one side's proof from being reflected as the other's.
public enum Handshake {
    public static let version: UInt16 = 5
    static let magic = Array("SVP1".utf8)
    static let nonceBytes = 32
    static let longestName = 64

    /// Who connected, and what for.
    public struct Peer: Sendable {
        public let name: String
        public let purpose: ConnectionPurpose
        public let session: UUID
    }

    public static func initiate(_ fd: Int32, secret: SharedSecret, name: String, peer: String, purpose: ConnectionPurpose,
                                session: UUID, deadline: MonotonicTime) throws(HandshakeError) {
        let nameBytes = Array(name.utf8.prefix(longestName))
        // Piece by piece: as one sum it takes Swift 6.0 ten seconds to compile.
        var hello = magic + littleEndian(version)
        hello.append(purpose.rawValue)
        hello += bytes(of: session)
        hello += randomBytes(nonceBytes)
        hello.append(UInt8(nameBytes.count))
        hello += nameBytes
        do {
            try send(fd, hello, deadline)
            let answer = try receive(fd, 4 + 2, deadline)
            guard Array(answer[0..<4]) == magic else { throw HandshakeError.notShadowVirt(peer) }
            let theirs = UInt16(answer[4]) | UInt16(answer[5]) << 8
            guard theirs == version else { throw HandshakeError.version(ours: version, theirs: theirs) }
            let nonce = try receive(fd, nonceBytes, deadline)
            let proof = try receive(fd, 32, deadline)
            let transcript = [hello, answer + nonce]
            guard equal(proof, secret.authenticate([Array("acceptor".utf8)] + transcript)) else {
                throw HandshakeError.wrongSecret(peer: peer)
            }
            try send(fd, secret.authenticate([Array("initiator".utf8)] + transcript), deadline)
            let verdict = try receive(fd, 3, deadline)
            let reason = String(decoding: try receive(fd, Int(verdict[1]) | Int(verdict[2]) << 8, deadline), as: UTF8.self)
            switch verdict[0] {
            case 1: break
            case 2: throw HandshakeError.unknownSession(reason)
            default: throw HandshakeError.refused(reason)
            }
        } catch let error as HandshakeError {
            throw error
        } catch {
            throw .channel(error as? ChannelError ?? .interrupted)
        }
    }

    /// The acceptor's last word, once it knows who is there and for what.
    public enum Verdict: Sendable {
        case welcome
        case refused(String)
        case unknownSession(String)
    }

    /// Tells the initiator whether it may go on. Exactly once after `accept`.
    public static func conclude(_ fd: Int32, _ verdict: Verdict, deadline: MonotonicTime) throws(HandshakeError) {
        let (code, reason): (UInt8, String) = switch verdict {
        case .welcome: (1, "")
        case .refused(let reason): (0, reason)
        case .unknownSession(let reason): (2, reason)
        }
        let text = Array(reason.utf8.prefix(1000))
        do {
            try send(fd, [code] + littleEndian(UInt16(text.count)) + text, deadline)
        } catch {
            throw .channel(error)
        }
    }

    /// Checks who is there. The initiator waits for `conclude` afterwards.
    public static func accept(_ fd: Int32, secret: SharedSecret, deadline: MonotonicTime) throws(HandshakeError) -> Peer {
        let from = TCP.peerName(fd)
        do {
            var hello = try receive(fd, 4 + 2, deadline)
            guard Array(hello[0..<4]) == magic else { throw HandshakeError.notShadowVirt(from) }
            let theirs = UInt16(hello[4]) | UInt16(hello[5]) << 8
            guard theirs == version else {
                // What follows in another version's hello is unknown; the other side must hear of ours all the same.
                try send(fd, magic + littleEndian(version), deadline)
                try discardRest(fd, deadline)
                throw HandshakeError.version(ours: version, theirs: theirs)
            }
            hello += try receive(fd, 1 + 16 + nonceBytes + 1, deadline)
            let length = Int(hello[hello.count - 1])
            guard length <= longestName, let purpose = ConnectionPurpose(rawValue: hello[6]) else {
                throw HandshakeError.notShadowVirt(from)
            }
            let nameBytes = try receive(fd, length, deadline)
            let session = uuid(Array(hello[7..<23]))
            hello += nameBytes
            let answer = magic + littleEndian(version) + randomBytes(nonceBytes)
            let transcript = [hello, answer]
            try send(fd, answer + secret.authenticate([Array("acceptor".utf8)] + transcript), deadline)
            let proof = try receive(fd, 32, deadline)
            guard equal(proof, secret.authenticate([Array("initiator".utf8)] + transcript)) else {
                throw HandshakeError.wrongSecret(peer: from)
            }
            return Peer(name: String(decoding: nameBytes, as: UTF8.self), purpose: purpose, session: session)
        } catch let error as HandshakeError {
            throw error
        } catch {
            throw .channel(error as? ChannelError ?? .interrupted)
        }
    }

    /// Compares without telling by its duration where the first difference lies.
    static func equal(_ a: [UInt8], _ b: [UInt8]) -> Bool {
        a.count == b.count && zip(a, b).reduce(0) { $0 | ($1.0 ^ $1.1) } == 0
    }

    /// Reads until the other side closes, at most a little: closing over unread bytes would reset the connection, and our answer
    /// with it.
    private static func discardRest(_ fd: Int32, _ deadline: MonotonicTime) throws(ChannelError) {
        shutdown(fd, Int32(SHUT_WR))
        let limit = min(deadline, MonotonicTime.now.adding(milliseconds: 1000))
        var scratch = [UInt8](repeating: 0, count: 4096)
        for _ in 0..<16 {
            if try wait(fd, for: .readable, until: limit).isEmpty { return }
            if recv(fd, &scratch, scratch.count, Int32(MSG_DONTWAIT)) <= 0 { return }
        }
    }

    private static func littleEndian(_ value: UInt16) -> [UInt8] { [UInt8(value & 0xff), UInt8(value >> 8)] }

    private static func bytes(of uuid: UUID) -> [UInt8] { withUnsafeBytes(of: uuid.uuid) { Array($0) } }

    private static func uuid(_ bytes: [UInt8]) -> UUID {
        var raw = UUID().uuid
        withUnsafeMutableBytes(of: &raw) { $0.copyBytes(from: bytes.prefix(16)) }
        return UUID(uuid: raw)
    }

    private static func send(_ fd: Int32, _ bytes: [UInt8], _ deadline: MonotonicTime) throws(ChannelError) {
        try writeFully(fd, bytes, deadline: deadline, during: "the handshake")
    }

    private static func receive(_ fd: Int32, _ count: Int, _ deadline: MonotonicTime) throws(ChannelError) -> [UInt8] {
        try readFully(fd, count: count, deadline: deadline, during: "the handshake")
    }
}

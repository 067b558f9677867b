import CLinux
import Glibc

/// `ADDRESS:PORT`, IPv6 addresses in brackets.
public struct Endpoint: Sendable, Hashable, CustomStringConvertible {
    public let address: String
    public let port: UInt16

    public init(address: String, port: UInt16) {
        self.address = address
        self.port = port
    }

    public var description: String { address.contains(":") ? "[\(address)]:\(port)" : "\(address):\(port)" }
}

public enum TCP {
    /// Runs `body` with each address that `endpoint` resolves to until one gives a result.
    private static func resolve<R>(_ endpoint: Endpoint, passive: Bool,
                                   _ body: (UnsafePointer<addrinfo>) throws(ChannelError) -> R) throws(ChannelError) -> R {
        var hints = addrinfo()
        hints.ai_socktype = Int32(SOCK_STREAM.rawValue)
        hints.ai_flags = passive ? AI_PASSIVE : 0
        var list: UnsafeMutablePointer<addrinfo>?
        let status = getaddrinfo(endpoint.address, String(endpoint.port), &hints, &list)
        guard status == 0, let first = list else {
            throw .system(SystemError("getaddrinfo", "\(endpoint) (\(String(cString: gai_strerror(status))))", code: EADDRNOTAVAIL))
        }
        defer { freeaddrinfo(first) }
        var failure = ChannelError.system(SystemError("getaddrinfo", endpoint.description, code: EADDRNOTAVAIL))
        var next: UnsafeMutablePointer<addrinfo>? = first
        while let candidate = next {
            do { return try body(candidate) } catch { failure = error }
            next = candidate.pointee.ai_next
        }
        throw failure
    }

    private static func setOption(_ fd: Int32, _ level: Int32, _ option: Int32, _ value: Int32) {
        var value = value
        setsockopt(fd, level, option, &value, socklen_t(MemoryLayout<Int32>.size))
    }

    public static func listen(_ endpoint: Endpoint, backlog: Int32 = 64) throws(ChannelError) -> Descriptor {
        let raw: Int32 = try resolve(endpoint, passive: true) { (info) throws(ChannelError) in
            let fd = socket(info.pointee.ai_family, Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue), 0)
            guard fd >= 0 else { throw .system(SystemError("socket")) }
            setOption(fd, SOL_SOCKET, SO_REUSEADDR, 1)
            guard bind(fd, info.pointee.ai_addr, info.pointee.ai_addrlen) == 0, Glibc.listen(fd, backlog) == 0 else {
                let error = SystemError("bind", endpoint.description)
                close(fd)
                throw .system(error)
            }
            return fd
        }
        return Descriptor(owning: raw)
    }

    /// Connects within the time limit. `stallMilliseconds`: unacknowledged data older than this breaks the connection.
    public static func connect(_ endpoint: Endpoint, wake: Int32 = -1, deadline: MonotonicTime,
                               stallMilliseconds: Int32 = 5000) throws(ChannelError) -> Descriptor {
        let raw: Int32 = try resolve(endpoint, passive: false) { (info) throws(ChannelError) in
            let fd = socket(info.pointee.ai_family, Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue | SOCK_NONBLOCK.rawValue), 0)
            guard fd >= 0 else { throw .system(SystemError("socket")) }
            do throws(ChannelError) {
                if Glibc.connect(fd, info.pointee.ai_addr, info.pointee.ai_addrlen) != 0 {
                    guard errno == EINPROGRESS else { throw ChannelError.system(SystemError("connect", endpoint.description)) }
                    if try wait(fd, for: .writable, wake: wake, until: deadline).isEmpty {
                        throw ChannelError.timedOut(during: "connect to \(endpoint)")
                    }
                    var code: Int32 = 0
                    var length = socklen_t(MemoryLayout<Int32>.size)
                    getsockopt(fd, SOL_SOCKET, SO_ERROR, &code, &length)
                    guard code == 0 else { throw ChannelError.system(SystemError("connect", endpoint.description, code: code)) }
                }
            } catch {
                close(fd)
                throw error
            }
            _ = clinux_set_nonblocking(fd, 0)
            tune(fd, stallMilliseconds: stallMilliseconds)
            return fd
        }
        return Descriptor(owning: raw)
    }

    /// Small messages leave at once; a dead peer is noticed by the kernel, too.
    public static func tune(_ fd: Int32, stallMilliseconds: Int32) {
        setOption(fd, Int32(IPPROTO_TCP), TCP_NODELAY, 1)
        setOption(fd, SOL_SOCKET, SO_KEEPALIVE, 1)
        setOption(fd, Int32(IPPROTO_TCP), 18 /* TCP_USER_TIMEOUT */, stallMilliseconds)
    }

    /// The kernel breaks the connection after so many seconds in which the other end answers nothing, whether there is something to send or
    /// not; nil: it waits as long as it is its habit, a quarter of an hour. For a socket that another process made.
    public static func limitSilence(_ fd: Int32, seconds: Int32?) {
        setOption(fd, SOL_SOCKET, SO_KEEPALIVE, seconds == nil ? 0 : 1)
        setOption(fd, Int32(IPPROTO_TCP), 18 /* TCP_USER_TIMEOUT */, (seconds ?? 0) * 1000)
        guard let seconds else { return }
        // Three probes in that time; the user timeout decides when it is over (tcp(7)).
        for option: Int32 in [4 /* TCP_KEEPIDLE */, 5 /* TCP_KEEPINTVL */] { setOption(fd, Int32(IPPROTO_TCP), option, max(1, seconds / 3)) }
        setOption(fd, Int32(IPPROTO_TCP), 6 /* TCP_KEEPCNT */, 3)
    }

    /// The numeric addresses that `host` means; none when it cannot be resolved.
    public static func addresses(of host: String) -> Set<String> {
        var found: Set<String> = []
        // Every candidate is refused, so that all of them are seen.
        _ = try? resolve(Endpoint(address: host, port: 0), passive: false) { (candidate: UnsafePointer<addrinfo>) throws(ChannelError) -> Void in
            var text = [CChar](repeating: 0, count: 64)
            if getnameinfo(candidate.pointee.ai_addr, candidate.pointee.ai_addrlen, &text, socklen_t(text.count), nil, 0, NI_NUMERICHOST) == 0 {
                found.insert(String(decoding: text.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }, as: UTF8.self))
            }
            throw .system(SystemError("getnameinfo", host, code: 0))
        }
        return found
    }

    /// The port that an IPv4 listener got, when it took any (port 0).
    public static func localPort(_ fd: Int32) throws(SystemError) -> UInt16 {
        var address = sockaddr_in()
        var length = socklen_t(MemoryLayout<sockaddr_in>.size)
        let status = withUnsafeMutablePointer(to: &address) { $0.withMemoryRebound(to: sockaddr.self, capacity: 1) { getsockname(fd, $0, &length) } }
        guard status == 0 else { throw SystemError("getsockname") }
        return UInt16(bigEndian: address.sin_port)
    }

    /// The address of the other end, for messages.
    public static func peerName(_ fd: Int32) -> String {
        var storage = sockaddr_storage()
        var length = socklen_t(MemoryLayout<sockaddr_storage>.size)
        var host = [CChar](repeating: 0, count: 64)
        let status = withUnsafeMutablePointer(to: &storage) { pointer in
            pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) { address in
                getpeername(fd, address, &length) == 0
                    ? getnameinfo(address, length, &host, socklen_t(host.count), nil, 0, NI_NUMERICHOST) : -1
            }
        }
        guard status == 0 else { return "unknown address" }
        return String(decoding: host.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }, as: UTF8.self)
    }
}

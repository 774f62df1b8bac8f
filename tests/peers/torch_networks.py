"""The networks of the benchmark in PyTorch, written from the layers of `robustmed.models`.

Parameter counts are those of the JAX networks: 38,998,721 (disk shape), 1,928,256 (nnU-Net 2D of
the hippocampus), 8,269,676 (3D residual U-Net), 24,308,153 (landmarks), 7,027,720 (YOLOv5s, 3
classes).
"""

import itertools

import torch
from torch import nn
from torch.nn import functional as F


class ShapeBlock(nn.Module):
  def __init__(self, i, o, s):
    super().__init__()
    self.c1 = nn.Conv2d(i, o, 3, s, 1, bias=False)
    self.n1 = nn.GroupNorm(o // 4, o)
    self.c2 = nn.Conv2d(o, o, 1, bias=False)
    self.n2 = nn.GroupNorm(o // 4, o)
    self.pool = nn.AvgPool2d(s) if s > 1 else nn.Identity()
    self.short = nn.Conv2d(i, o, 1, bias=False) if i != o else nn.Identity()

  def forward(self, x):
    y = self.c2(F.leaky_relu(self.n1(self.c1(x))))
    return F.leaky_relu(self.n2(y + self.short(self.pool(x))))


class ShapeNet(nn.Module):
  def __init__(self):
    super().__init__()
    self.s1 = nn.Conv2d(1, 32, 7, 2, 3)
    self.s2 = nn.Conv2d(32, 64, 5, 2, 2, bias=False)
    self.sn = nn.GroupNorm(64, 64)
    pair = lambda i, o: nn.Sequential(ShapeBlock(i, o, 2), ShapeBlock(o, o, 1))
    self.e = nn.ModuleList([pair(64, 128), pair(128, 256), pair(256, 512), pair(512, 1024)])
    self.last = nn.Conv2d(1024, 1024, 2, bias=False)
    self.head = nn.Sequential(
      nn.Flatten(),
      nn.GroupNorm(1, 1024),
      nn.LeakyReLU(),
      nn.Linear(1024, 1024, bias=False),
      nn.GroupNorm(1, 1024),
      nn.LeakyReLU(),
      nn.Linear(1024, 352),
    )
    up = lambda c, k, g: [
      nn.ConvTranspose2d(c, c, k, 2, k // 2, output_padding=1, bias=False),
      nn.GroupNorm(g, c),
      nn.LeakyReLU(),
    ]
    self.g4 = nn.Sequential(
      nn.ConvTranspose2d(1024, 512, 3, 2, 1, output_padding=1, bias=False),
      nn.GroupNorm(1, 512),
      nn.LeakyReLU(),
      *up(512, 3, 2),
    )
    dec = lambda i, o, g: nn.Sequential(
      nn.Conv2d(i, o, 3, 1, 1, bias=False), nn.GroupNorm(g, o), nn.LeakyReLU(), *up(o, 3, g)
    )
    self.g3, self.g2, self.g1 = dec(1024, 256, 4), dec(512, 128, 8), dec(256, 64, 16)
    self.g0 = nn.Sequential(
      nn.Conv2d(128, 32, 3, 1, 1, bias=False),
      nn.GroupNorm(32, 32),
      nn.LeakyReLU(),
      *up(32, 7, 32),
      nn.ConvTranspose2d(32, 1, 5, 2, 2, output_padding=1),
    )

  def forward(self, x):
    e0 = F.leaky_relu(self.sn(self.s2(F.leaky_relu(self.s1(x)))))
    skips = [e0]
    for stage in self.e:
      skips.append(stage(skips[-1]))
    z = self.last(skips[-1])
    contour = self.head(z).view(-1, 176, 2) + 64
    y = self.g4(z)
    y = self.g3(torch.cat([skips[3], y], 1))
    y = self.g2(torch.cat([skips[2], y], 1))
    y = self.g1(torch.cat([skips[1], y], 1))
    return contour, self.g0(torch.cat([skips[0], y], 1))


def convs(i, o, s=1):
  one = lambda a, b, t: nn.Sequential(
    nn.Conv2d(a, b, 3, t, 1), nn.InstanceNorm2d(b, affine=True), nn.LeakyReLU(0.01)
  )
  return nn.Sequential(one(i, o, s), one(o, o, 1))


class NnUNet2D(nn.Module):
  def __init__(self, features, classes, channels=1):
    super().__init__()
    self.down = nn.ModuleList(
      [convs(channels, features[0])] + [convs(a, b, 2) for a, b in itertools.pairwise(features)]
    )
    rev = list(reversed(list(itertools.pairwise(features))))
    self.up = nn.ModuleList([nn.ConvTranspose2d(b, a, 2, 2, bias=False) for a, b in rev])
    self.dec = nn.ModuleList([convs(2 * a, a) for a, _ in rev])
    self.heads = nn.ModuleList([nn.Conv2d(a, classes, 1, bias=False) for a, _ in rev])

  def forward(self, x):
    skips = []
    for stage in self.down:
      x = stage(x)
      skips.append(x)
    outs = []
    for up, dec, head, skip in zip(self.up, self.dec, self.heads, reversed(skips[:-1])):
      x = dec(torch.cat([up(x), skip], 1))
      outs.append(head(x))
    return outs[-1]


class CB(nn.Sequential):
  def __init__(self, i, o, k=3, s=1):
    pad = nn.Identity() if k == 1 else nn.ConstantPad3d((0, 1) * 3 if s == 2 else (1, 1) * 3, 0.0)
    super().__init__(
      pad, nn.Conv3d(i, o, k, s), nn.InstanceNorm3d(o, affine=True), nn.LeakyReLU(0.01)
    )


class ResUNet3D(nn.Module):
  def __init__(self, labels=4):
    super().__init__()
    w = [16, 32, 64, 128, 256]
    self.first = nn.ModuleList(
      [CB(4 if n == 0 else w[n - 1], w[n], s=1 if n == 0 else 2) for n in range(5)]
    )
    self.ctx = nn.ModuleList([nn.Sequential(CB(c, c), CB(c, c)) for c in w])
    self.upc = nn.ModuleList([CB(w[n + 1], w[n]) for n in range(4)])
    self.loc = nn.ModuleList(
      [nn.Sequential(CB(2 * w[n], w[n]), CB(w[n], w[n], 1)) for n in range(4)]
    )
    self.seg = nn.ModuleList([nn.Conv3d(w[n], labels, 1) for n in range(3)])

  def forward(self, x):
    skips = []
    for first, ctx in zip(self.first, self.ctx):
      x = first(x)
      x = x + ctx(x)
      skips.append(x)
    out = None
    for n in (3, 2, 1, 0):
      x = self.upc[n](F.interpolate(x, scale_factor=2, mode='nearest'))
      x = self.loc[n](torch.cat([x, skips[n]], 1))
      if n < 3:
        seg = self.seg[n](x)
        out = seg if out is None else F.interpolate(out, scale_factor=2, mode='nearest') + seg
    return out


VGG19 = ((64, 2), (128, 2), (256, 4), (512, 4), (512, 4))


class LandmarkUNet(nn.Module):
  def __init__(self, landmarks=19):
    super().__init__()
    stages, before = [], 3
    for features, number in VGG19:
      layers = []
      for _ in range(number):
        layers += [nn.Conv2d(before, features, 3, 1, 1), nn.ReLU()]
        before = features
      stages.append(nn.Sequential(*layers, nn.MaxPool2d(2)))
    self.encoder = nn.ModuleList(stages)
    skips = (512, 256, 128, 64, 0)
    inside = (512, 256, 128, 64, 128)
    outside = (256, 128, 64, 128, 64)
    self.decoder = nn.ModuleList(
      self.double(i + s, o) for i, s, o in zip(inside, skips, outside, strict=True)
    )
    self.maps = nn.Conv2d(outside[-1], 3 * landmarks, 1)

  @staticmethod
  def double(i, o):
    one = lambda a: (nn.Conv2d(a, o, 3, 1, 1), nn.BatchNorm2d(o), nn.ReLU())
    return nn.Sequential(*one(i), *one(o))

  def forward(self, image):
    x, pooled = image, []
    for stage in self.encoder:
      x = stage(x)
      pooled.append(x)
    x = pooled.pop()
    for block in self.decoder:
      x = F.interpolate(x, scale_factor=2, mode='bilinear', align_corners=True)
      if pooled:
        x = torch.cat([pooled.pop(), x], 1)
      x = block(x)
    return self.maps(x)


class Block(nn.Sequential):
  def __init__(self, i, o, k=1, s=1, pad=None):
    pad = k // 2 if pad is None else pad
    super().__init__(nn.Conv2d(i, o, k, s, pad, bias=False), nn.BatchNorm2d(o, eps=1e-3), nn.SiLU())


class Bottleneck(nn.Module):
  def __init__(self, c, add):
    super().__init__()
    self.inner, self.add = nn.Sequential(Block(c, c), Block(c, c, 3)), add

  def forward(self, x):
    return x + self.inner(x) if self.add else self.inner(x)


class C3(nn.Module):
  def __init__(self, i, o, n=1, add=True):
    super().__init__()
    h = o // 2
    self.first = nn.Sequential(Block(i, h), *(Bottleneck(h, add) for _ in range(n)))
    self.second, self.last = Block(i, h), Block(o, o)

  def forward(self, x):
    return self.last(torch.cat([self.first(x), self.second(x)], 1))


class SPPF(nn.Module):
  def __init__(self, c):
    super().__init__()
    self.first, self.last = Block(c, c // 2), Block(2 * c, c)
    self.pool = nn.MaxPool2d(5, 1, 2)

  def forward(self, x):
    parts = [self.first(x)]
    for _ in range(3):
      parts.append(self.pool(parts[-1]))
    return self.last(torch.cat(parts, 1))


class Yolo(nn.Module):
  def __init__(self, classes=3):
    super().__init__()
    self.fine = nn.Sequential(
      Block(3, 32, 6, 2, 2), Block(32, 64, 3, 2), C3(64, 64), Block(64, 128, 3, 2), C3(128, 128, 2)
    )
    self.middle = nn.Sequential(Block(128, 256, 3, 2), C3(256, 256, 3))
    self.coarse = nn.Sequential(Block(256, 512, 3, 2), C3(512, 512), SPPF(512), Block(512, 256))
    self.narrow = nn.Sequential(C3(512, 256, add=False), Block(256, 128))
    self.p8, self.to16 = C3(256, 128, add=False), Block(128, 128, 3, 2)
    self.p16, self.to32 = C3(256, 256, add=False), Block(256, 256, 3, 2)
    self.p32 = C3(512, 512, add=False)
    self.heads = nn.ModuleList(nn.Conv2d(c, 3 * (5 + classes), 1) for c in (128, 256, 512))

  def forward(self, x):
    up = lambda x: F.interpolate(x, scale_factor=2, mode='nearest')
    fine = self.fine(x)
    middle = self.middle(fine)
    coarse = self.coarse(middle)
    half = self.narrow(torch.cat([up(coarse), middle], 1))
    p8 = self.p8(torch.cat([up(half), fine], 1))
    p16 = self.p16(torch.cat([self.to16(p8), half], 1))
    p32 = self.p32(torch.cat([self.to32(p16), coarse], 1))
    return [head(x) for head, x in zip(self.heads, (p8, p16, p32), strict=True)]

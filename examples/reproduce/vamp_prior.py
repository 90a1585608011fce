"""The same network with a VampPrior that starts from training images: 81.09 nats on static MNIST in a deeper one."""

import torch
from networks import DenseConvDecoder, DenseConvEncoder
from protocol import mnist, options, reproduce

import vaelib as vl

arguments = options("vamp_prior", epochs=100)
prior = vl.VampPrior((1, 28, 28), num_components=100)
chosen = torch.randperm(len(mnist(arguments)[0]))[: prior.num_components]
prior.start_from(mnist(arguments)[0].batch(chosen))
# Group norm, since pseudo-inputs are a batch of their own in training.
vae = vl.VAE(DenseConvEncoder(norm="group"), DenseConvDecoder(), prior=prior)
source = "Tomczak & Welling (2018), ConvHVAE + VampPrior, static MNIST: https://arxiv.org/abs/1705.07120"
reproduce("vamp_prior", vae, vl.Elbo(), arguments, 81.09, source, published_on="static", learning_rate=2e-3)
